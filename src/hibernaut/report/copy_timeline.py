# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded copy loop in a report: its document, and its sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.report.documents import (
    CopyTimelineDocument,
    SentenceDocument,
    TimelineStepDocument,
    TraceTableDocument,
)
from hibernaut.report.text import counted, hex_or_none
from hibernaut.report.visible import visible_line

if TYPE_CHECKING:
    from typing import Literal

    from hibernaut.hibernation.copy_timeline import CopyTimeline, LoopSplit, TimelineStep, TraceTable

__all__ = ["CALL_WORDS", "TimelineReport", "timeline_document", "words_of_calls"]

CALL_WORDS: Mapping[str, str] = {
    "copy": "copy",
    "set_direct_map_default_noflush": "map back",
    "alloc_page": "allocate",
    "split_large_page": "split",
    "flush_tlb_all": "flush all",
    "set_direct_map_invalid_noflush": "unmap",
    "flush_tlb_kernel_range": "flush",
    "crash": "crash",
}
"""Words for the kernel's functions, in the order of a page's calls."""
MAX_ROWS = 200
MOST_CHARACTERS = 100
SHOWN_SPLITS = 6
"""Splits with sentences of their own; the others are counted."""


@dataclass(frozen=True, eq=False)
class TimelineReport:
    """A recorded copy loop as a page shows it.

    Attributes:
        found: the timeline.
        document: its numbers and sentences.
    """

    found: CopyTimeline
    document: CopyTimelineDocument


def timeline_document(found: CopyTimeline, name: str, unknown: str | None) -> CopyTimelineDocument:
    """Return the document of a timeline.

    Args:
        found: the timeline.
        name: name of the trace's file.
        unknown: why it is not known whether the trace is of the source, a sentence; None if it is known to be.
    """
    trace = found.trace
    told = list(_sentences(found))
    if unknown is not None:
        told.append(_said("unknown", unknown))
    return {
        "trace": visible_line(name),
        "release": _short(trace.release),
        "guest": _short(trace.guest),
        "outcome": _short(trace.outcome),
        "same_machine": unknown is None,
        "calls": trace.counts,
        "pages": found.pages,
        "listed_pages": trace.frames.total_pages,
        "sentences": told,
        "steps": [_step_document(step) for step in found.steps[:MAX_ROWS]],
        "more_steps": max(0, len(found.steps) - MAX_ROWS),
        "tables": [_table_document(table) for table in found.tables[:MAX_ROWS]],
        "more_tables": max(0, len(found.tables) - MAX_ROWS),
    }


def words_of_calls(step: TimelineStepDocument) -> str:
    """Return the calls of a step in words: "copy, map back, unmap, flush"."""
    said = []
    for call in step["calls"]:
        name, *rest = call.split(" ", 1)
        said.append(" ".join([CALL_WORDS.get(name, name), *rest]))
    return ", ".join(said)


def _step_document(step: TimelineStep) -> TimelineStepDocument:
    return {
        "first_call": step.first_call,
        "last_call": step.last_call,
        "calls": list(step.calls),
        "start_pfn": hex_or_none(step.start_pfn),
        "last_pfn": hex_or_none(None if step.end_pfn is None else step.end_pfn - 1),
        "pages": step.pages,
        "runs": step.runs,
        "error": step.error,
        "table": step.table,
    }


def _table_document(table: TraceTable) -> TraceTableDocument:
    return {
        "pfn": f"{table.pfn:#x}",
        "allocated_by": table.allocated_by,
        "listed": table.listed,
        "copied_by": table.copied_by,
        "changes_before": table.changes_before,
        "changes_after": table.changes_after,
    }


def _short(text: str) -> str:
    """Return a text of the trace as a document has it: visible, and no longer than a name is."""
    return visible_line(text[:MOST_CHARACTERS])


def _said(state: Literal["ok", "warning", "bad", "unknown", "fact"], text: str) -> SentenceDocument:
    return {"about": "trace", "state": state, "text": visible_line(text)}


def _sentences(found: CopyTimeline) -> Iterator[SentenceDocument]:
    trace = found.trace
    ends = {"hibernated": "The kernel hibernated.", "died": "The kernel crashed."}
    yield _said(
        "fact",
        f"The copy loop of Linux {_short(trace.release)} was recorded, in a guest {_short(trace.guest)}:"
        f" {counted(len(trace.calls), 'call')}. The copy of {counted(found.pages, 'page')} begins in it;"
        f" {trace.frames.total_pages} are on the list of pages to save."
        f" {ends.get(trace.outcome, f'Its outcome: {_short(trace.outcome)}.')}",
    )
    if found.mapped or found.unmapped:
        yield _said(
            "fact",
            f"{counted(found.mapped, 'time')} it maps a page back for its copy, and"
            f" {counted(found.unmapped, 'time')} it unmaps one again.",
        )
    for split in found.splits[:SHOWN_SPLITS]:
        yield _split(split, found.crash is not None or trace.outcome == "died")
    if len(found.splits) > SHOWN_SPLITS:
        yield _said("fact", f"{counted(len(found.splits) - SHOWN_SPLITS, 'more split')}: the steps below have them.")
    for number in found.failed[:SHOWN_SPLITS]:
        yield _said("bad", f"Call {number} gets no page for a table: the allocation fails.")
    if found.crash is not None:
        number, address = found.crash
        yield _said("bad", f"Call {number} is an access to {address:#x} that faults: the kernel crashes there.")
    if not found.splits and not found.failed and found.crash is None:
        yield _said("ok", "The loop splits no large entry, and no allocation for a table fails.")


def _split(split: LoopSplit, crashed: bool) -> SentenceDocument:
    """Return the sentence on a split: whether the image has the entry before or after it, and the new table."""
    table, new = split.table, split.new
    at = "" if split.copied_pfn is None else f", at the copy of frame {split.copied_pfn:#x},"
    text = (
        f"Call {split.call}{at} splits the {split.level.size} entry at {split.paddr:#x}, in the table in frame"
        f" {table.pfn:#x}: it then names the new table in frame {new.pfn:#x}."
    )
    if crashed:
        return _said("fact", f"{text} There is no image: the kernel crashes later.")
    if not table.listed:
        return _said("bad", f"{text} Frame {table.pfn:#x} is not on the list of pages to save: the image lacks it.")
    if table.copied_by is None:
        return _said("unknown", f"{text} The loop ends before frame {table.pfn:#x} is copied.")
    if table.copied_by < split.call:
        return _said(
            "ok",
            f"{text} Frame {table.pfn:#x} was copied before, by call {table.copied_by}: the image has the entry as it"
            " was.",
        )
    text += (
        f" Frame {table.pfn:#x} is copied later, by call {table.copied_by}: the image has the entry after the split."
    )
    if not new.listed:
        return _said(
            "bad",
            f"{text} Frame {new.pfn:#x} is not on the list of pages to save: the image names a table that it lacks.",
        )
    if new.copied_by is None:
        return _said("unknown", f"{text} The loop ends before frame {new.pfn:#x} is copied.")
    changes = f"{counted(new.changes_before, 'change')} of its entries before and {new.changes_after} after"
    return _said("warning", f"{text} Frame {new.pfn:#x} is copied by call {new.copied_by}, with {changes}.")
