# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the command line in this process."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hibernaut.cli import main


@dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def hibernaut(*arguments: object) -> Result:
    """Run `hibernaut` with these arguments, as the console script does."""
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
    return Result(status, out.getvalue(), err.getvalue())


def refused(*arguments: object, status: int = 2) -> str:
    """The one line with which a command refuses; nothing on standard output."""
    result = hibernaut(*arguments)
    assert result.status == status, (result.status, result.out, result.err)
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    return lines[0]
