# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut schema`: the JSON Schema of a command's document."""

from __future__ import annotations

from typing import Annotated

import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.report.documents import DOCUMENTS
from hibernaut.report.schema import schema_of

__all__ = ["schema"]


def schema(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="Words of a command, such as map or lab prove. Default: list the commands."),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the JSON Schema of the document that a command prints with --json."""
    if command:
        found = schema_of(" ".join(command))
        if not quiet or json:
            print_json(found)
    elif json:
        print_json({"commands": list(DOCUMENTS)})
    elif not quiet:
        console().print("\n".join(DOCUMENTS))
