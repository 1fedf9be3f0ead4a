# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut seal-key FILE`: a pair of keys for seals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions
from hibernaut.report.seals import seal_key_document, seal_key_text
from hibernaut.sealing.keys import make_keys

__all__ = ["seal_key"]


def seal_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File for the private key; the public one is FILE.pub.")],
    output: OutputOptions,
) -> None:
    """Make a pair of Ed25519 keys: FILE to seal with, readable by its owner alone, and FILE.pub to verify with.

    Both are PEM, as OpenSSL reads and writes them. A file that exists is never replaced.
    """
    key = make_keys(file)
    output.answer(seal_key_document(str(file), key.key_id), seal_key_text)
