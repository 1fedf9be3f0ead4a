# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases in which a kernel's copy loop is recorded: the model must make the same calls, step by step."""

from __future__ import annotations

from pathlib import Path

from hibernaut.hibernation.trace import check_trace, read_trace, write_trace
from hibernaut.hibernation.ways import Fixmap
from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.trace import record_trace
from hibernaut.lab.variants import variant_named

__all__ = ["traced"]

TRACE_NAME = "trace.json"


def traced(variant: str, lab: Lab, folder: Path) -> str:
    """Record a kernel's copy loop, and let the model run it with the same allocations.

    Args:
        variant: kind of guest.
        lab: laboratory with the kernel.
        folder: existing folder for the guest, the dump and the trace.

    Returns:
        The number of calls of each kind.

    Raises:
        CaseFailed: the model makes another call, or a way that makes others is not refused.
        LabUnavailable, LabError: see `record_trace`.
    """
    write_trace(folder / TRACE_NAME, record_trace(lab, variant_named(variant), folder).trace)
    trace = read_trace(folder / TRACE_NAME)
    checked = check_trace(trace)
    if checked.difference is not None:
        raise CaseFailed(f"{checked.same} calls are the same; {checked.difference}")
    if check_trace(trace, Fixmap()).difference is None:
        raise CaseFailed("the copy through the fixmap makes the same calls: the trace proves nothing")
    return f"{len(trace.calls)} steps the same: " + ", ".join(f"{count} {name}" for name, count in trace.counts.items())
