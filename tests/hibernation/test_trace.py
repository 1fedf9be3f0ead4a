# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against real kernels, call by call: their traces replay, and no wrong model or changed trace does."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.hibernation import Fixmap
from hibernaut.hibernation.swsusp_save import Copy
from hibernaut.hibernation.trace import (
    Trace,
    check_trace,
    compare_calls,
    model_calls,
    read_trace,
    trace_of,
    write_trace,
)
from hibernaut.hibernation.ways import Remap, RemapGeneric, Way
from hibernaut.hibernation.ways.mutants import RemapNoFlush, RemapNoUnmap
from hibernaut.linux.calls import KINDS, Call, copied, merged
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.linux.set_memory import set_direct_map_default_noflush, set_memory_4k
from hibernaut.memory.ranges import FrameRanges
from tests.cli.run import hibernaut, refused
from tests.conftest import REPOSITORY

TRACES = REPOSITORY / "tests" / "data" / "traces"
"""Recorded by `hibernaut lab trace DIR --kernel LINE --variant VARIANT`, compressed with xz."""
NAMES = sorted(path.name.removesuffix(".json.xz") for path in TRACES.glob("*.json.xz"))
KERNELS = ("6.1", "6.12", "7.3")
BLOCK_PAGES = 512


@cache
def traced(name: str) -> Trace:
    """Return a trace from the tests' data."""
    path = TRACES / f"{name}.json.xz"
    return trace_of(lzma.decompress(path.read_bytes()), path.name)


@cache
def modelled(name: str) -> tuple[Call, ...]:
    """Return the calls of the model in the state of a trace."""
    return model_calls(traced(name))


@pytest.fixture(params=KERNELS)
def split_trace(request: pytest.FixtureRequest) -> Trace:
    """A trace of each kernel with a 2 MiB block out of the direct map, which the loop splits."""
    return traced(f"{request.param}-hole-2m")


@pytest.fixture(params=KERNELS)
def crash_trace(request: pytest.FixtureRequest) -> Trace:
    """A trace of each kernel whose allocation for the split fails."""
    return traced(f"{request.param}-hole-2m-fails")


def test_the_traces_are_of_every_kernel() -> None:
    """One that splits and one that crashes, of each of Debian's kernels; together they have every kind of call."""
    assert {f"{line}-{variant}" for line in KERNELS for variant in ("hole-2m", "hole-2m-fails")} <= set(NAMES)
    found = [traced(name) for name in NAMES]
    assert {call.name for trace in found for call in trace.calls} == set(KINDS)
    assert sum(path.stat().st_size for path in TRACES.iterdir()) < 100_000


@pytest.mark.parametrize("name", NAMES)
def test_the_model_makes_the_same_calls(name: str) -> None:
    """Every call of the real kernel, with frames, entries and results."""
    assert compare_calls(traced(name).calls, modelled(name)).difference is None
    assert modelled(name) == traced(name).calls


def test_a_split_has_the_calls_of_every_page(split_trace: Trace) -> None:
    """One allocation and one split; then each page of the block is mapped, unmapped, flushed."""
    counts = split_trace.counts
    assert counts["alloc_page"] == counts["split_large_page"] == counts["flush_tlb_all"] == 1
    for name in ("set_direct_map_default_noflush", "set_direct_map_invalid_noflush", "flush_tlb_kernel_range"):
        assert counts[name] == BLOCK_PAGES
    pages = sum(int(dict(call.facts)["pages"] or 0) for call in split_trace.calls if call.name == "copy")
    assert pages == split_trace.frames.total_pages


def test_a_crash_ends_the_trace(crash_trace: Trace) -> None:
    """The allocation fails, set_direct_map_default_noflush returns -ENOMEM, and the read of the page faults."""
    allocation, change, crash = crash_trace.calls[-3:]
    assert allocation == Call.of("alloc_page", None)
    assert dict(change.facts)["error"] == -12
    assert dict(change.facts)["before"] == dict(change.facts)["after"]
    assert crash.name == "crash"
    assert crash_trace.outcome == "died"


# ---- wrong models ----


class RemapTwice(Remap):
    """`Remap` that maps a page twice."""

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """See `Way.hibernate_map_page`."""
        set_direct_map_default_noflush(machine, pfn)
        return super().hibernate_map_page(machine, pfn)


class RemapSplitsNext(Remap):
    """`Remap` that splits the entry after that of the page."""

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """See `Way.hibernate_map_page`."""
        set_memory_4k(machine, machine.vaddr(pfn + BLOCK_PAGES), 1)
        return super().hibernate_map_page(machine, pfn)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (RemapNoFlush(), "the kernel: flush_tlb_kernel_range"),
        (RemapNoUnmap(), "the kernel: set_direct_map_invalid_noflush"),
        (RemapTwice(), "the model: set_direct_map_default_noflush"),
        (RemapSplitsNext(), "the kernel: split_large_page"),
        (Fixmap(), "the kernel: copy"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Way) else "",
)
def test_a_wrong_way_is_refused(split_trace: Trace, way: Way, expected: str) -> None:
    """A model that does not flush, does not restore the entry, maps twice, splits another entry, leaves the map."""
    found = check_trace(split_trace, way)
    assert found.difference is not None
    assert expected in found.difference
    assert found.same < len(split_trace.calls)


def test_another_order_is_refused(split_trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that copies the pages that are not present from the last one down."""
    begin = Copy._begin

    def descending(copy: Copy) -> FrameRanges:
        frames = begin(copy)
        copy._pending = [(pfn, pfn + 1) for first, end in copy.pending for pfn in range(first, end)]
        return frames

    monkeypatch.setattr(Copy, "_begin", descending)
    assert "the kernel: copy pfn=" in str(check_trace(split_trace).difference)


def test_a_second_allocation_is_refused(split_trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that allocates twice for a split."""
    once = Machine.alloc_table

    def twice(machine: Machine, purpose: str) -> int:
        pfn = once(machine, purpose)
        once(machine, purpose)
        return pfn

    monkeypatch.setattr(Machine, "alloc_table", twice)
    found = check_trace(split_trace)
    assert "the kernel: split_large_page" in str(found.difference)
    assert "the model: alloc_page pfn=None" in str(found.difference)


def test_a_split_without_a_flush_is_refused(split_trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that flushes nothing after a split."""
    monkeypatch.setattr(Machine, "flush_tlb_all", lambda _machine: None)
    assert "the kernel: flush_tlb_all" in str(check_trace(split_trace).difference)


def test_a_page_that_is_skipped_is_refused(crash_trace: Trace) -> None:
    """A model that skips the page that cannot be mapped does not crash where the kernel does."""
    assert "the kernel: crash" in str(check_trace(crash_trace, RemapGeneric()).difference)


def test_the_rules_of_another_kernel_are_refused(split_trace: Trace) -> None:
    """Whether set_direct_map_invalid_noflush clears DIRTY is in each entry that it leaves."""
    rules = rules_named(split_trace.rules)
    other = replace(rules, invalid_clears_dirty=not rules.invalid_clears_dirty)
    assert "set_direct_map_invalid_noflush" in str(check_trace(split_trace, None, other).difference)


# ---- changed traces ----


def dropped(calls: list[Call], at: int) -> list[Call]:
    """Leave out a call."""
    return calls[:at] + calls[at + 1 :]


def repeated(calls: list[Call], at: int) -> list[Call]:
    """Make a call twice."""
    return calls[: at + 1] + calls[at:]


def exchanged(calls: list[Call], at: int) -> list[Call]:
    """Exchange a call with the one before it."""
    return [*calls[: at - 1], calls[at], calls[at - 1], *calls[at + 1 :]]


def with_another_fact(calls: list[Call], at: int) -> list[Call]:
    """Change the last fact of a call; a call without facts gets another name."""
    facts = calls[at].facts
    changed = Call(calls[at].name, (*facts[:-1], (facts[-1][0], "0x1"))) if facts else Call.of("alloc_page", "0x1")
    return [*calls[:at], changed, *calls[at + 1 :]]


@pytest.mark.parametrize("change", [dropped, repeated, exchanged, with_another_fact])
@pytest.mark.parametrize("name", KINDS)
def test_a_changed_call_is_noticed(name: str, change: Callable[[list[Call], int], list[Call]]) -> None:
    """Of each kind: one left out, made twice, too early, or with another fact; the step is that of the change."""
    recorded = "6.1-hole-2m-fails" if name == "crash" else "6.1-hole-2m"
    calls = list(traced(recorded).calls)
    (*_, at) = (number for number, call in enumerate(calls) if call.name == name)
    found = compare_calls(change(calls, at), modelled(recorded))
    assert found.difference is not None
    assert at - 1 <= found.same <= at + 1
    assert found.difference.startswith(f"step {found.same + 1}: the kernel: ")
    assert "\n" not in found.difference


def test_another_state_is_noticed(split_trace: Trace) -> None:
    """Another frame for the table, a page that is not on the list, an entry that was present."""
    pfn = split_trace.allocations[0]
    assert pfn is not None
    assert "alloc_page" in str(check_trace(replace(split_trace, allocations=(pfn + 1,))).difference)
    shorter = FrameRanges.of(list(split_trace.frames)[1:])
    assert check_trace(replace(split_trace, frames=shorter)).same == 0
    tables = {at: np.where(entries == 0x800FFFFFFFBFF062, 0, entries) for at, entries in split_trace.tables.items()}
    assert check_trace(replace(split_trace, tables=tables)).difference is not None


# ---- the file ----


def test_a_trace_is_read_as_it_was_written(split_trace: Trace, tmp_path: Path) -> None:
    """Tables entry by entry, pages, choices, calls; and a second writing gives the same bytes."""
    write_trace(tmp_path / "one", split_trace)
    found = read_trace(tmp_path / "one")
    assert found.tables.keys() == split_trace.tables.keys()
    assert all(np.array_equal(found.tables[pfn], split_trace.tables[pfn]) for pfn in found.tables)
    assert replace(found, tables={}, frames=split_trace.frames).calls == split_trace.calls
    assert list(found.frames) == list(split_trace.frames)
    write_trace(tmp_path / "two", found)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "hibernaut run"}, "its format is not 'hibernaut trace'"),
        ({"version": 2}, "expected version 1; found 2"),
        ({"levels": 3}, "3 levels of paging"),
        ({"rules": "1.0"}, "no rules for a kernel line '1.0'"),
        ({"events": [{"event": "sneeze"}]}, "is not an event"),
        ({"events": [{"event": "copy", "pfn": "0x1"}]}, "the facts of copy are not pfn, pages"),
        ({"pages": [[-1, 1]]}, "the pages are not runs of frames"),
        ({"tables": {"0x1": [[511, 2, "0x1", 0]]}}, "entries 511 to 513 of a table"),
        ({"tables": {"0x1": [[0, 1, "0x10000000000000000", 0]]}}, "damaged trace"),
        ({"allocations": None}, "damaged trace"),
        ({"cr3": "zero"}, "damaged trace"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """A file of another format or version, or with values that cannot be, is refused in one line."""
    found = json.loads(lzma.decompress((TRACES / "6.1-hole-2m-fails.json.xz").read_bytes()))
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({**found, **change}))
    with pytest.raises(FormatError) as error:
        read_trace(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_copies_of_neighbours_are_one() -> None:
    """Neighbouring frames that are copied one after another are one call; descending or repeated ones are not."""
    flush = Call.of("flush_tlb_all")
    assert merged([copied(1), copied(2), copied(3, 2), copied(6)]) == (copied(1, 4), copied(6))
    assert merged([copied(1), flush, copied(2)]) == (copied(1), flush, copied(2))
    assert merged([copied(2), copied(1), copied(1)]) == (copied(2), copied(1), copied(1))


# ---- the command ----


def test_the_command_compares(tmp_path: Path) -> None:
    """Status 0 and a line if the model makes the same calls; 1 and the first difference if not; both or none: 2."""
    path = tmp_path / "trace.json"
    write_trace(path, traced("7.3-hole-2m"))
    result = hibernaut("replay", "--against", path)
    assert result.status == 0
    assert "the model makes the same calls, by remap and the rules of 7.3" in result.out
    wrong = hibernaut("replay", "--against", path, "--via", "remap-no-flush", "--json")
    assert wrong.status == 1
    assert wrong.document["same"] is False
    assert wrong.document["difference"].startswith(f"step {wrong.document['same_calls'] + 1}: ")
    assert "\n" not in wrong.document["difference"]
    assert "expected remap, fixmap" in refused("replay", "--against", path, "--via", "sneeze")
    assert hibernaut("replay").status == hibernaut("replay", path, "--against", path).status == 2
