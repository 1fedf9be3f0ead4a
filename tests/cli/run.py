# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the command line in this process."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jsonschema

from hibernaut.cli import main
from hibernaut.report.documents import DOCUMENTS
from hibernaut.report.schema import schema_of

NEXT = re.compile(
    r"; (build|check|choose|compress|configure|convert|copy|do not|end|export|free|give|if it lies|install|leave out|"
    r"load|look into|name|no verdict|remove|replay|run|see|set|start|take|try|unlock|unmount|unpack|use|write|"
    r"`hibernaut [a-z -]+` [a-z]+)[^;]*$"
)
"""The last part of an error's line: an imperative, or the command that tells more."""


@dataclass(frozen=True)
class Result:
    """Result of a command."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def hibernaut(*arguments: object) -> Result:
    """Run `hibernaut` with these arguments, as the console script does.

    A document that it prints with --json is validated against the command's published schema.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["hibernaut", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    result = Result(status, out.getvalue(), err.getvalue())
    if "--json" in arguments and result.out:
        jsonschema.validate(result.document, schema_of(command_of(arguments)), jsonschema.Draft202012Validator)
    return result


def command_of(arguments: Sequence[object]) -> str:
    """Return the words of the command in a command line."""
    words = [str(word) for word in arguments[:2]]
    return " ".join(words) if " ".join(words) in DOCUMENTS else words[0]


def refused(*arguments: object, status: int = 2) -> str:
    """Return the one line with which a command refuses: it ends with what to do next. Standard output is empty."""
    result = hibernaut(*arguments)
    assert result.status == status, (result.status, result.out, result.err)
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    assert NEXT.search(lines[0]), f"nothing to do next: {lines[0]}"
    return lines[0]
