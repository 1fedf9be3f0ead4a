# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one thin module a command."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process.

    The exit status is 0 for success, 1 for a negative result, 2 for wrong usage or input that cannot be used,
    70 for a fault of this program, 130 for an interrupt, 141 if nothing reads the output any more.
    """
    try:
        try:
            status = _run(sys.argv[1:])
        except Exception as error:
            from hibernaut.cli.failure import report_failure

            status = report_failure(error)
    except KeyboardInterrupt:  # also while modules are imported
        sys.stderr.write("hibernaut: interrupted\n")
        status = 130
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if mode := os.environ.get("_HIBERNAUT_COMPLETE"):  # set by the scripts of `hibernaut completion`
        from hibernaut.cli.suggest import print_suggestions

        print_suggestions(mode, arguments)
        return 0
    if arguments in (["--version"], ["--version", "--verbose"]):  # without a parser of options, which loads for longer
        from hibernaut.cli.terminal import print_version

        print_version(verbose=len(arguments) > 1)
        return 0
    from hibernaut.cli.app import run

    return run(arguments)
