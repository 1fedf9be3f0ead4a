# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut schema`: the JSON Schema of a command's document."""

from __future__ import annotations

from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions, among
from hibernaut.cli.terminal import print_json
from hibernaut.report.documents import DOCUMENTS
from hibernaut.report.schema import schema_of

__all__ = ["schema"]


def schema(
    output: OutputOptions,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="Words of a command: map, lab prove. Default: list the commands.",
            autocompletion=among(sorted({word for command in DOCUMENTS for word in command.split()})),
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of the document that a command prints with --json."""
    if command:
        found = schema_of(" ".join(command))
        if not output.quiet or output.json:
            print_json(found)
    else:
        output.answer({"commands": list(DOCUMENTS)}, lambda document: "\n".join(document["commands"]))
