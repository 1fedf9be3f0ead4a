# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording a copy loop: the module's hits as calls, and a real guest whose calls the model makes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.hibernation.copy_timeline import match_trace
from hibernaut.hibernation.examination import examine
from hibernaut.hibernation.trace import check_trace, direct_map_tables, read_trace, write_trace
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.lab.guest.region import SOURCES, region_module
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.record import IMAGE_NAME
from hibernaut.lab.trace import DUMP_NAME, FAULT, HIT, MAGIC, Hit, HitKind, calls_of_hits, record_trace
from hibernaut.lab.variants import variant_named
from hibernaut.linux.calls import Call, allocated, copied, crashed, split
from hibernaut.linux.direct_map import DirectMap
from hibernaut.paging.entries import Level
from hibernaut.sources import open_memory
from tests.lab.conftest import unavailable

LARGE, TABLE, SMALL = 0x800FFFFFFFBFF062, 0x9DC8063, 0x800FFFFFFFBFF062


def hit(kind: HitKind, argument: int = 0, result: int = 0, *, small: bool = False) -> Hit:
    """Return a hit for the page at frame 0x400, whose 2 MiB entry is split or not."""
    if small:
        return Hit(kind, argument, result, Level.PTE, 0x9DC8000, SMALL, 0x4402010, TABLE)
    return Hit(kind, argument, result, Level.PMD, 0x4402010, LARGE, 0x4401000, 0x4402067)


def test_hits_become_calls() -> None:
    """A call is noted at its return, with both entries; a split where the level of the entry has changed."""
    hits = [
        hit(HitKind.PAGE_PRESENT, 0x400),
        hit(HitKind.DEFAULT, 0x400),
        hit(HitKind.ALLOCATED, 0, 0x9DC8),
        hit(HitKind.FLUSH_ALL, small=True),
        hit(HitKind.DEFAULT_RETURNS, small=True),
        hit(HitKind.FLUSH_RANGE, 0x1000, 0x2000 - (1 << 64), small=True),
        hit(HitKind.PAGE_PRESENT, 0x401, small=True),
        hit(HitKind.PAGE_PRESENT, 0x402, small=True),
    ]
    small, large = f"PTE 0x9dc8000 {SMALL:#x}", f"PMD 0x4402010 {LARGE:#x}"
    assert calls_of_hits(hits) == (
        copied(0x400),
        allocated(0x9DC8),
        split(Level.PMD, 0x4402010, LARGE, TABLE),
        Call.of("flush_tlb_all"),
        Call.of("set_direct_map_default_noflush", "0x400", large, small, 0),
        Call.of("flush_tlb_kernel_range", "0x1000", "0x2000"),
        copied(0x401, 2),
    )


def test_a_failure_and_a_crash_become_calls() -> None:
    """A page that is not allocated, -ENOMEM, and the address that the kernel prints."""
    hits = [
        hit(HitKind.PAGE_PRESENT, 0x400),
        hit(HitKind.DEFAULT, 0x400),
        hit(HitKind.ALLOCATED),
        hit(HitKind.DEFAULT_RETURNS, 0, -12),
        hit(HitKind.CRASHED, 0xFFFF888000400000),
    ]
    large = f"PMD 0x4402010 {LARGE:#x}"
    assert calls_of_hits(hits)[1:] == (
        allocated(None),
        Call.of("set_direct_map_default_noflush", "0x400", large, large, -12),
        crashed(0xFFFF888000400000),
    )


def test_hits_that_contradict_one_another_are_refused() -> None:
    """A return without a call; a table in the entry of another block."""
    with pytest.raises(LabError, match="set_direct_map_invalid_noflush returns, and was not called"):
        calls_of_hits([hit(HitKind.PAGE_PRESENT, 0x400), hit(HitKind.INVALID_RETURNS)])
    elsewhere = Hit(HitKind.FLUSH_ALL, 0, 0, Level.PTE, 0x9DC8000, SMALL, 0x4402018, TABLE)
    with pytest.raises(LabError, match="the entry at 0x4402010 was split, and 0x4402018 names the table"):
        calls_of_hits([hit(HitKind.PAGE_PRESENT, 0x400), elsewhere])


def test_a_page_without_a_table_has_no_entry() -> None:
    """A zero entry is an entry at PTE level, and none above: the kernel finds no table there."""
    assert Hit(HitKind.DEFAULT, 0, 0, Level.PTE, 0x1000, 0, 0, 0).fact == "PTE 0x1000 0x0"
    assert Hit(HitKind.DEFAULT, 0, 0, Level.PMD, 0x1000, 0, 0, 0).fact is None
    assert Hit(HitKind.DEFAULT, 0, 0, None, 0, 0, 0, 0).fact is None


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("BUG: unable to handle page fault for address: ffff888000400000", 0xFFFF888000400000),
        ("BUG: kernel NULL pointer dereference, address: 0000000000000000", 0),
    ],
)
def test_the_address_of_a_crash_is_read_from_the_log(line: str, address: int) -> None:
    """Both forms of the kernel's first line."""
    found = FAULT.search(f"[    7.1] {line}\n")
    assert found
    assert int(found[1], 16) == address


def test_module_and_reader_agree_on_the_buffer() -> None:
    """The magic number, the size of a hit and the numbers of the kinds are those of hlab_trace.h."""
    text = (SOURCES / "hlab_trace.h").read_text()
    assert f"TRACE_MAGIC {MAGIC:#x}ull" in text
    fields = text[text.index("struct hit {") : text.index("};", text.index("struct hit {"))]
    assert fields.count("u64 ") * 8 == HIT.size
    kinds = text[text.index("enum hit_kind {") : text.index("};", text.index("enum hit_kind {"))]
    names = [line.split()[0].rstrip(",") for line in kinds.splitlines()[1:]]
    assert names == [kind.name for kind in HitKind if kind.name]


def test_a_real_guest_and_the_model_make_the_same_calls(lab_61: Lab, tmp_path: Path) -> None:
    """6.1 with a block out of its direct map: the trace has the tables of its dump, replays, and is of its image."""
    try:
        region_module(lab_61.cache, lab_61.kernel)
    except LabUnavailable as error:
        unavailable(str(error))
    recorded = record_trace(lab_61, variant_named("hole-2m"), tmp_path)
    write_trace(tmp_path / "trace.json", recorded.trace)
    trace = read_trace(tmp_path / "trace.json")
    assert check_trace(trace).difference is None
    assert trace.counts["set_direct_map_default_noflush"] == Level.PMD.pages
    assert trace.frames.total_pages == recorded.record.saved_pages
    for name in (DUMP_NAME, IMAGE_NAME):
        with open_memory(tmp_path / name) as source:
            assert match_trace(trace, "trace.json", examine(source)) is None
    with open_memory(tmp_path / DUMP_NAME) as dump:
        pages = pages_to_save(dump)
        assert pages.pfns is not None
        assert trace.frames.pfns().tolist() == pages.pfns.tolist()
        found = direct_map_tables(dump.memory, DirectMap.find(dump.memory, trace.cr3, trace.levels))
    assert {pfn: entries.tolist() for pfn, entries in found.items()} == {
        pfn: entries.tolist() for pfn, entries in trace.tables.items()
    }
