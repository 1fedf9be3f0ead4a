# SPDX-License-Identifier: GPL-2.0-or-later
"""Timelines of recorded copy loops, against a naive count of the calls, and against the image that a kernel wrote."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
from hibernaut.hibernation import Fixmap, Remap
from hibernaut.hibernation.copy_timeline import COPY, CopyTimeline, TimelineStep, copy_timeline, match_trace
from hibernaut.hibernation.examination import Examination, examine
from hibernaut.hibernation.trace import Trace
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.linux.calls import Call, copied
from hibernaut.linux.layout import hole_2m, hole_4k
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from hibernaut.report.copy_timeline import timeline_document
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.hibernation.test_trace import NAMES, traced
from tests.report.machine_files import image_by, trace_by

HOLES = "6.12-holes"
LOST_IN_IMAGE = {0x8A63}
"""Frame of the page table that the image of the guest of `HOLES` names and lacks, as `hibernaut map` reads it."""
WHOLE_IN_IMAGE = {0x8A02230: 0x800FFFFFF73FF062, 0x8A02238: 0x800FFFFFF71FF062}
"""Address and value of the entries of the same guest's other blocks, in its image."""


def timeline(name: str) -> CopyTimeline:
    """Return the timeline of a trace from the tests' data."""
    return copy_timeline(traced(name), name)


def pages_of(trace: Trace) -> list[tuple[int, int]]:
    """Return (frame, number of the call) of each page that the loop copies, in order."""
    found = []
    for number, call in enumerate(trace.calls, 1):
        if call.name == COPY:
            facts = dict(call.facts)
            start = int(str(facts["pfn"]), 16)
            found += [(start + page, number) for page in range(int(facts["pages"] or 0))]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_steps_have_every_page_and_every_call(name: str) -> None:
    """Pages in the order of the copy, call by call; no call is left out, and none of a later step comes earlier."""
    found = timeline(name)
    pages = pages_of(found.trace)
    assert found.pages == len(pages)
    at = 0
    for step in found.steps:
        mine = pages[at : at + step.pages]
        at += step.pages
        assert [mine[0][0], mine[-1][0] + 1] == [step.start_pfn, step.end_pfn]
        assert sum(one[0] != before[0] + 1 for before, one in pairwise(mine)) == step.runs - 1
        assert step.first_call == mine[0][1]
    assert at == len(pages)
    numbers = {call for step in found.steps for call in range(step.first_call, step.last_call + 1)}
    assert numbers == set(range(1, len(found.trace.calls) + 1))
    ends = [step.last_call for step in found.steps]
    assert ends == sorted(ends)


@pytest.mark.parametrize("name", NAMES)
def test_the_calls_of_a_step_are_those_of_each_of_its_pages(name: str) -> None:
    """Multiplied by its pages, as many of each kind as the trace has."""
    found = timeline(name)
    counts: dict[str, int] = {}
    for step in found.steps:
        for call in step.calls:
            if call != COPY:
                plain = call.removesuffix(" fails")
                counts[plain] = counts.get(plain, 0) + step.pages
    assert counts == {kind: number for kind, number in found.trace.counts.items() if kind != COPY}


@pytest.mark.parametrize("name", NAMES)
def test_changes_of_tables_are_those_of_a_naive_count(name: str) -> None:
    """Each call with an entry that differs before and after it, by the table that has it, before or after its copy."""
    found = timeline(name)
    copied_by: dict[int, int] = {}
    for pfn, number in pages_of(found.trace):
        copied_by.setdefault(pfn, number)
    changes: dict[int, list[int]] = {}
    for number, call in enumerate(found.trace.calls, 1):
        facts = dict(call.facts)
        if call.name == "split_large_page":
            changes.setdefault(int(str(facts["entry"]).split()[1], 16) >> 12, []).append(number)
        elif call.name.startswith("set_direct_map") and facts["before"] != facts["after"]:
            changes.setdefault(int(str(facts["after"]).split()[1], 16) >> 12, []).append(number)
    given = {pfn for pfn in found.trace.allocations if pfn is not None}
    assert {table.pfn for table in found.tables} == {*changes, *given}
    assert {table.pfn for table in found.tables if table.allocated_by} == given
    for table in found.tables:
        mine, at = changes.get(table.pfn, []), copied_by.get(table.pfn)
        assert table.copied_by == at
        assert table.listed == bool(found.trace.frames.end_of(table.pfn))
        before = [number for number in mine if at is None or number < at]
        assert (table.changes_before, table.changes_after) == (len(before), len(mine) - len(before))


def test_the_timeline_is_that_of_the_image_that_the_kernel_wrote() -> None:
    """The split before the copy of its table loses the new one in the image; those after it leave the entry there."""
    found = timeline(HOLES)
    document = timeline_document(found, "trace", None)
    states = [(one["state"], one["text"]) for one in document["sentences"] if "splits" in one["text"]]
    assert [state for state, _ in states] == ["bad", "ok", "ok"]
    assert {split.new.pfn for split, (state, _) in zip(found.splits, states, strict=True) if state == "bad"} == (
        LOST_IN_IMAGE
    )
    assert {split.paddr: split.before for split in found.splits[1:]} == WHOLE_IN_IMAGE
    assert "image names a table that it lacks" in states[0][1]
    assert "the image has the entry as it was" in states[1][1]
    assert (found.mapped, found.unmapped) == (3 * Level.PMD.pages + 1,) * 2


def test_a_page_at_the_end_of_a_run_is_a_step_of_its_own() -> None:
    """The kernel's 4K hole comes right after present pages: the run ends before it, and the call is part of both."""
    found = timeline(HOLES)
    at = next(number for number, step in enumerate(found.steps) if step.start_pfn == 0x9007)
    run, page = found.steps[at - 1 : at + 1]
    assert (run.start_pfn, run.end_pfn, run.calls) == (0x9000, 0x9007, (COPY,))
    assert (page.pages, page.first_call, run.last_call) == (1, 6194, 6194)
    assert page.calls[1:] == (
        "set_direct_map_default_noflush",
        "set_direct_map_invalid_noflush",
        "flush_tlb_kernel_range",
    )


def test_a_crash_ends_the_timeline() -> None:
    """The allocation, the call that it fails in, and the address; no image is spoken of."""
    found = timeline("6.1-hole-2m-fails")
    assert (found.failed, found.crash) == ((4,), (6, 0xFFFF888000400000))
    last = found.steps[-1]
    assert last.calls == (COPY, "alloc_page fails", "set_direct_map_default_noflush", "crash")
    assert last.error == -12
    assert (found.mapped, found.unmapped) == (0, 0)
    told = timeline_document(found, "trace", None)["sentences"]
    assert [one["state"] for one in told] == ["fact", "bad", "bad"]
    assert "the image" not in " ".join(one["text"] for one in told)


def reordered(trace: Trace, table: int) -> Trace:
    """Return a trace whose loop copies a page table first of all."""
    calls = []
    for call in trace.calls:
        facts = dict(call.facts)
        start, pages = int(str(facts.get("pfn") or "0"), 16), int(facts.get("pages") or 0)
        if call.name != COPY or not start <= table < start + pages:
            calls.append(call)
            continue
        calls += [copied(start, table - start)] if start < table else []
        calls += [copied(table + 1, start + pages - table - 1)] if table + 1 < start + pages else []
    return replace(trace, calls=(copied(table), *calls))


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.3"])
def test_the_order_of_the_copy_decides(kernel: str) -> None:
    """A table that is copied before the split is consistent; one that is not listed, or never reached, is said."""
    trace = traced(f"{kernel}-hole-2m")
    (split,) = copy_timeline(trace, "").splits

    def told(changed: Trace) -> tuple[str, str]:
        sentences = timeline_document(copy_timeline(changed, ""), "", None)["sentences"]
        (found,) = ((one["state"], one["text"]) for one in sentences if "splits" in one["text"])
        return found

    assert told(trace)[0] == "bad"
    assert told(reordered(trace, split.table.pfn)) == (
        "ok",
        told(trace)[1].split(f" Frame {split.table.pfn:#x}")[0].replace("Call 5", "Call 6")
        + f" Frame {split.table.pfn:#x} was copied before, by call 1: the image has the entry as it was.",
    )
    without = trace.frames.without(FrameRanges.of([(split.table.pfn, 1)]))
    assert "is not on the list of pages to save: the image lacks it" in told(replace(trace, frames=without))[1]
    cut = replace(trace, calls=trace.calls[:100])
    assert told(cut)[0] == "unknown"
    assert "ends before frame" in told(cut)[1]
    with_new = FrameRanges.of([*trace.frames, (split.new.pfn, 1)])
    both = replace(trace, frames=with_new, calls=(*trace.calls, copied(split.new.pfn)))
    assert told(both)[0] == "warning"
    assert "with 1024 changes of its entries before and 0 after" in told(both)[1]


BEGIN = copied(0x400)
ENTRY = "PMD 0x4402010 0x800fffffffbff062"


@pytest.mark.parametrize(
    "call",
    [
        Call.of("copy", "sneeze", 1),
        Call.of("copy", None, 1),
        Call.of("copy", "0x10000000000000000", 1),
        Call.of("copy", "0xffffffffffffffff", 1),
        Call.of("alloc_page", "0xffffffffffffffff"),
        Call.of("copy", "0x400", 0),
        Call.of("copy", "0x400", None),
        Call.of("copy", "0x400", 1 << 62),
        Call.of("copy", "-0x400", 1),
        Call.of("alloc_page", "0x"),
        Call.of("alloc_page", 7),
        Call.of("set_direct_map_default_noflush", "0x400", "PMD", None, 0),
        Call.of("set_direct_map_default_noflush", "0x400", None, "XXX 0x1 0x1", 0),
        Call.of("set_direct_map_default_noflush", "0x400", None, None, "zero"),
        Call.of("set_direct_map_invalid_noflush", None, None, None, 0),
        Call.of("split_large_page", "PMD", "0x1", "0x2"),
        Call.of("split_large_page", "PMD 0x4402010 0x1", "0x1", "0x2"),
        Call.of("split_large_page", "HUGE 0x4402010", "0x1", "0x2"),
        Call.of("split_large_page", "PMD 0x4402010", None, "0x2"),
        Call.of("flush_tlb_kernel_range", "a", "z"),
        Call.of("crash", "here"),
    ],
    ids=str,
)
def test_a_fact_that_is_none_is_refused(call: Call) -> None:
    """One line with the number of the event and its name; the reader of traces leaves such facts as they are."""
    trace = replace(traced("6.1-hole-2m"), calls=(BEGIN, call))
    with pytest.raises(FormatError, match=f"the facts of event 2 are not those of {call.name}") as error:
        copy_timeline(trace, "trace.json")
    assert "\n" not in str(error.value)
    assert "trace.json" in str(error.value)


def test_calls_that_no_kernel_makes_have_a_timeline() -> None:
    """Calls before the first copy; a change of another page than the one that is copied; very many calls at a page."""
    flush = Call.of("flush_tlb_all")
    change = Call.of("set_direct_map_default_noflush", "0x500", ENTRY, ENTRY, 0)
    trace = replace(traced("6.1-hole-2m"), calls=(flush, BEGIN, change, copied(0x401), *[flush] * 100))
    found = copy_timeline(trace, "")
    first, other, many = found.steps
    assert (first.start_pfn, first.pages, first.calls) == (None, 0, ("flush_tlb_all",))
    assert other.calls == (COPY, "set_direct_map_default_noflush of frame 0x500")
    assert len(many.calls) == 33
    assert many.calls[-1] == "..."
    assert many.last_call == 104
    assert found.tables == ()
    empty = copy_timeline(replace(trace, calls=()), "")
    assert (empty.steps, empty.pages) == ((), 0)
    assert timeline_document(empty, "", None)["steps"] == []


def test_neighbouring_pages_with_other_calls_are_other_steps() -> None:
    """An error, a gap, or one flush more: the step ends."""
    good = Call.of("set_direct_map_default_noflush", "0x400", ENTRY, ENTRY, 0)

    def at(pfn: int, *calls: Call) -> list[Call]:
        return [copied(pfn), *(replace(one, facts=(("pfn", hex(pfn)), *one.facts[1:])) for one in calls)]

    bad = replace(good, facts=(*good.facts[:-1], ("error", -12)))

    def steps(*calls: Call) -> list[TimelineStep]:
        return list(copy_timeline(replace(traced("6.1-hole-2m"), calls=calls), "").steps)

    assert len(steps(*at(0x400, good), *at(0x401, good))) == 1
    assert len(steps(*at(0x400, good), *at(0x401, bad))) == 2
    assert len(steps(*at(0x400, good), *at(0x402, good))) == 2
    assert len(steps(*at(0x400, good), *at(0x401, good, good))) == 2
    assert len(steps(copied(0x400), copied(0x800))) == 1
    assert len(steps(copied(0x800), copied(0x400))) == 2


# ---- whose trace it is ----


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    """An image of a simulated machine by mainline's way, and the trace of its copy."""
    folder = tmp_path_factory.mktemp("traced")
    holes = (hole_2m(0x1000), hole_4k(0x805, 2))
    return image_by(folder / "image", None, *holes), trace_by(Remap(), *holes)


def examined(path: Path) -> Examination:
    """Return an examination of a file."""
    with open_memory(path) as source:
        return examine(source)


def test_the_trace_of_an_image_is_known_by_its_list_and_root(simulated: tuple[Path, Trace]) -> None:
    """Another page on the list, another root, other levels: refused; a kernel that is not read is said."""
    path, trace = simulated
    with open_memory(path) as source:
        found = examine(source)
        assert "its kernel is not read" in str(match_trace(trace, "t", found))
        start, pages = next(iter(trace.frames))
        other = FrameRanges.of([(start, pages - 1), *list(trace.frames)[1:]])
        more = FrameRanges.of([*trace.frames, (trace.frames.end, 1)])
        for changed, said in (
            (replace(trace, frames=more), f"which differs from frame {trace.frames.end:#x} on"),
            (replace(trace, frames=other), f"which differs from frame {start + pages - 1:#x} on"),
            (replace(trace, cr3=trace.cr3 + 0x1000), f"expected CR3 {trace.cr3:#x}"),
            (replace(trace, levels=5), "expected 4 levels; found 5 levels"),
        ):
            with pytest.raises(FormatError, match=said) as error:
                match_trace(changed, "t", found)
            assert "\n" not in str(error.value)


def test_the_kernel_of_a_trace_is_compared(golden: Golden) -> None:
    """The release of the golden machine's kernel differs from that of 7.3; its list from that of the same release."""
    with open_memory(golden("ram-6.1-low2m.elf")) as source:
        found = examine(source)
        with pytest.raises(FormatError, match="another kernel than SOURCE's"):
            match_trace(traced("7.3-hole-2m"), "t", found)
        with pytest.raises(FormatError, match="another hibernation than SOURCE's"):
            match_trace(traced("6.1-hole-2m"), "t", found)
        assert found.identity is not None
        pages = pages_to_save(found.source)
        assert pages.pfns is not None
        assert pages.info is not None
        mine = replace(
            traced("6.1-hole-2m"),
            release=str(found.identity.release),
            frames=FrameRanges.of_pfns(pages.pfns),
            cr3=pages.info.root or 0,
        )
        assert match_trace(mine, "t", found) is None


def test_a_source_without_a_list_is_not_decided_or_refuted(golden: Golden) -> None:
    """The same release and base: not known, and said; memory beyond its own, or another base, is refused."""
    trace = traced("6.1-hole-2m")
    with open_memory(golden("ram-6.1-secretmem.elf")) as source:
        found = examine(source)
        said = match_trace(trace, "t", found)
        assert said is not None
        assert "is not known: the file has no list" in said
        beyond = replace(trace, frames=FrameRanges.of([*trace.frames, (1 << 30, 1)]))
        with pytest.raises(FormatError, match="found memory up to frame 0x40000000"):
            match_trace(beyond, "t", found)
        elsewhere = replace(traced(HOLES), release=trace.release)
        with pytest.raises(FormatError, match="another boot than SOURCE's"):
            match_trace(elsewhere, "t", found)


def test_a_loop_that_changes_nothing_is_fine() -> None:
    """By a fixmap slot: no split, no table, no page that is mapped back."""
    found = copy_timeline(trace_by(Fixmap(), hole_2m(0x1000)), "")
    assert (found.splits, found.tables, found.mapped) == ((), (), 0)
    assert [one["state"] for one in timeline_document(found, "", None)["sentences"]] == ["fact", "ok"]
    torn = copy_timeline(trace_by(Remap(), hole_2m(0x1000)), "")
    assert [one["state"] for one in timeline_document(torn, "", None)["sentences"]] == ["fact", "fact", "bad"]
