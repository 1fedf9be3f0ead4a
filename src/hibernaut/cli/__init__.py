# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one thin module a command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["main"]

ENDING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals that end a command as an exception does: what it has begun is undone or removed."""


class Ended(KeyboardInterrupt):
    """A signal other than SIGINT ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


def main() -> None:
    """Run the command line and end the process.

    The exit status is 0 for success, 1 for a negative result, 2 for wrong usage or input that cannot be used,
    70 for a fault of this program, 130 for an interrupt, 141 if nothing reads the output any more, 143 for SIGTERM,
    129 for SIGHUP.
    """
    try:
        with _ended_by_signals():
            try:
                status = _run(sys.argv[1:])
            except Exception as error:
                from hibernaut.cli.failure import report_failure

                status = report_failure(error)
    except KeyboardInterrupt as interrupt:  # also while modules are imported
        number = interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT
        sys.stderr.write(f"hibernaut: {ENDING[number]}{_visible_notes(interrupt)}\n")
        status = 128 + number
    sys.exit(status)


def _visible_notes(interrupt: KeyboardInterrupt) -> str:
    """Return what was noted about an interrupt, which may name files; nothing is imported if there is nothing."""
    notes = getattr(interrupt, "__notes__", ())
    if not notes:
        return ""
    from hibernaut.report.visible import visible_line

    return visible_line("".join(f"; {note}" for note in notes))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise `Ended` on SIGTERM and SIGHUP within the block, unless they are ignored or handled already."""
    taken = []
    with suppress(ValueError):  # only the main thread handles signals
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)


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
