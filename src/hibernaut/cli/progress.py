# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress on standard error, if that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hibernaut.report.visible import visible_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn

    from hibernaut.exploration.sweep import Progress

__all__ = ["page_progress", "sweep_progress"]


@contextmanager
def page_progress(what: str, total_pages: int | None, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar of pages; yield the function that moves it by a number of pages.

    Args:
        what: the work.
        total_pages: its size; None if it is unknown.
        quiet: whether to show nothing.
    """
    if not _shown(quiet):
        yield lambda _pages: None
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
    )
    with _bar(*columns) as bar:
        task = bar.add_task(visible_line(what), total=total_pages)
        yield lambda pages: bar.advance(task, pages)


@contextmanager
def sweep_progress(quiet: bool) -> Iterator[Callable[..., None]]:
    """Show a bar of machines, with runs, states and states per second.

    Yield the function that moves it: it takes a `Progress` and, if there are several sweeps, the name of one.
    """
    if not _shown(quiet):
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    started, before = time.monotonic(), 0
    columns = (
        TextColumn("machines"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with _bar(*columns) as bar:
        task = bar.add_task("", total=None)

        def told(progress: Progress, name: str = "") -> None:
            nonlocal started, before
            if not progress.machines or progress.states < before:  # another sweep, or one that is resumed
                started, before = time.monotonic(), progress.states
            rate = (progress.states - before) / max(1e-9, time.monotonic() - started)
            line = f"{name} {progress.runs} runs, {progress.states} states, {rate:.0f} states/s"
            bar.update(task, completed=progress.machines, total=progress.total, description=line)

        yield told


def _shown(quiet: bool) -> bool:
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


def _bar(*columns: ProgressColumn) -> Bar:
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
