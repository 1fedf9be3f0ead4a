# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut completion`: the script by which a shell completes hibernaut's command lines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions
from hibernaut.report.documents import CompletionDocument

__all__ = ["Shell", "completion"]

SCRIPTS = Path(__file__).with_name("completions")


class Shell(StrEnum):
    """Shell."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="Shell that reads the script.")],
    output: OutputOptions,
) -> None:
    """Print a script by which a shell completes commands, options, their values and file names.

    It asks `hibernaut` itself, and needs no change with a new version. bash: `eval "$(hibernaut completion bash)"` in
    ~/.bashrc. zsh: the same with zsh in ~/.zshrc, after compinit. fish: `hibernaut completion fish | source` in
    ~/.config/fish/config.fish.
    """
    script = (SCRIPTS / f"hibernaut.{shell}").read_text("utf-8")
    document: CompletionDocument = {"shell": str(shell), "script": script}
    output.answer(document, lambda found: found["script"].removesuffix("\n"))
