# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab kselftest DIR`: the situations of `lab judge` as a self-test for a kernel tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions
from hibernaut.lab.guest.selftest_files import write_selftest
from hibernaut.report.documents import SelftestDocument

__all__ = ["kselftest"]


def kselftest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the self-test; it is made if necessary.")],
    output: OutputOptions,
) -> None:
    """Write a self-test for a kernel tree: our module and a script that prints KTAP, for a test machine without swap.

    On the test machine, `make` builds the module and `make run_tests` runs the script. It reports crashes, allocations
    and changed entries, and skips what cannot run; the exit status is 0, 1 for a failure, or 4 for a skip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document: SelftestDocument = {"files": [str(path) for path in write_selftest(folder)]}
    output.answer(document, lambda found: "\n".join(found["files"]))
