# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's own state, read out of its memory. Witness: the info page and the list of the kernel's own image."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.suspend import (
    KernelSymbols,
    kernel_state,
    kernel_symbols,
    machine_facts,
    pages_to_save,
)
from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.physical import Frames, Overlay, PhysicalMemory, Segment, SegmentMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo, page_table_root, parse_vmcoreinfo
from hibernaut.paging.tables import PageTables
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp import open_image
from tests.conftest import Golden

PAIRS = [("ram-6.1-lzo.elf", "swap-6.1-lzo.img"), ("ram-6.1-low2m.elf", "swap-6.1-low2m.img")]
DUMP = "ram-6.1-lzo.elf"

pytest.importorskip("drgn", reason="drgn is not installed: pip install 'hibernaut[lab]'")


@pytest.mark.parametrize(("dump", "image"), PAIRS)
def test_the_kernel_wrote_the_same(golden: Golden, dump: str, image: str) -> None:
    """Stopped before the copy, a 6.1 has the very list and the very info page, byte for byte, that it then wrote."""
    with open_memory(golden(dump)) as source, open_image(golden(image)) as written:
        state = kernel_state(source.memory, source.vmcoreinfo, name=source.name)
        assert np.array_equal(state.pfns, written.pfns)
        pages = len(written.pfns)
        assert state.info.with_pages(saved_pages=pages, image_pages=pages).page == written.info.page
    assert state.release == "6.1.0-56-amd64"
    assert state.levels == 4


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.1-low2m.img", "swap-6.12-lz4.img"])
def test_machine_facts_are_the_info_pages(golden: Golden, name: str) -> None:
    """In the memory that an image holds, KASLR or not: the e820 checksum and the pages that its info page has."""
    expected = golden.expected[name]
    with open_image(golden(name)) as image:
        facts = machine_facts(image.memory())
    assert f"{facts.e820_checksum:#x}" == expected["e820_checksum"]
    assert facts.physical_pages == expected["physical_pages"]
    assert facts.release.startswith("6.12.107" if "6.12" in name else "6.1.0-56")


def test_symbols_are_at_run_time_addresses(golden: Golden) -> None:
    """With KASLR too `restore_registers` is where the image's info page says; static symbols are there."""
    with open_image(golden("swap-6.12-lz4.img")) as image:
        symbols = kernel_symbols(image.memory())
        assert symbols["restore_registers"].address == image.info.jump_address
    assert symbols["orig_bm"].size > 0
    assert symbols.get("no_such_symbol") is None
    with pytest.raises(FormatError, match="no symbol no_such_symbol"):
        symbols["no_such_symbol"]


def test_a_kernel_that_does_not_hibernate(golden: Golden) -> None:
    """A running kernel has no list: an error that says so, while the facts of the machine are there."""
    with open_memory(golden("ram-6.1-secretmem.elf")) as source:
        with pytest.raises(HibernautError, match="is not in the middle of swsusp_save: its list") as error:
            kernel_state(source.memory, name=source.name)
        assert machine_facts(source.memory).physical_pages == 65406
        answer = pages_to_save(source)
    assert answer.pages_from == "direct-map"
    assert answer.reason == str(error.value)
    assert answer.pfns is None
    assert answer.info is None


def test_an_image_brings_its_own_list(golden: Golden) -> None:
    """The list and the info page of an image are its own; no kernel is asked."""
    with open_memory(golden("swap-6.1-lzo.img")) as source:
        answer = pages_to_save(source)
        assert source.image is not None
        assert answer.info is source.image.info
    assert (answer.pages_from, answer.kernel, answer.reason) == ("image", None, None)


def test_no_kernel_in_memory() -> None:
    """Memory without VMCOREINFO is refused, and so is VMCOREINFO that says nothing."""
    memory = SegmentMemory([Segment(0, np.zeros((4, 4096), dtype=np.uint8))])
    with pytest.raises(FormatError, match=r"dump: no VMCOREINFO"):
        kernel_state(memory, name="dump")
    with pytest.raises(FormatError, match="does not say where"):
        machine_facts(memory, b"OSRELEASE=6.1\n")


def test_without_drgn(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what is needed and how to get it; `pages_to_save` gives it as the reason."""
    monkeypatch.setitem(sys.modules, "drgn", None)
    with open_memory(golden(DUMP)) as source:
        with pytest.raises(HibernautError, match=r"pip install 'hibernaut\[lab\]'"):
            machine_facts(source.memory)
        assert "hibernaut[lab]" in (pages_to_save(source).reason or "")


class Damaged:
    """A kernel in `swsusp_save`, and where the things that are read lie in it."""

    def __init__(self, source: Source) -> None:
        self.memory: PhysicalMemory = source.memory
        text = find_vmcoreinfo(source.memory)
        assert text is not None
        self.text = text
        self.facts = parse_vmcoreinfo(text)
        root, levels = page_table_root(self.facts)
        assert root is not None
        assert levels is not None
        self.tables = PageTables(source.memory, root, levels)
        self.symbols: KernelSymbols = kernel_symbols(source.memory, text)

    def paddr(self, vaddr: int) -> int:
        found = self.tables.walk(vaddr).paddr
        assert found is not None
        return found

    def u64(self, vaddr: int) -> int:
        found = self.memory.read_u64(self.paddr(vaddr))
        assert found is not None
        return found

    def address(self, symbol: str) -> int:
        return self.symbols[symbol].address

    def with_u64(self, vaddr: int, value: int, size_bytes: int = 8) -> Overlay:
        overlay = Overlay(self.memory)
        overlay.write(self.paddr(vaddr), value.to_bytes(size_bytes, "little"))
        return overlay

    @property
    def zone(self) -> int:
        return self.u64(self.address("orig_bm"))

    @property
    def leaf(self) -> int:
        return self.u64(self.zone + 32)

    def frames(self) -> dict[str, list[int]]:
        """Frames by what they hold."""
        node = self.u64(self.address("node_data"))
        vaddrs = {
            "bitmaps": [self.address("orig_bm")],
            "zone": [self.zone],
            "leaf": [self.leaf],
            "bits": [self.u64(self.leaf + 16)],
            "e820": [self.u64(self.address("e820_table_firmware")), self.address("e820_table_firmware")],
            "node_data": [
                self.address("node_data"),
                node,
                node + int(self.facts["OFFSET(pglist_data.node_start_pfn)"]),
            ],
        }
        for name in ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base"):
            start = int(self.facts[f"SYMBOL(kallsyms_{name})"], 16)
            vaddrs[name] = [start + 4096 * page for page in range(4)]
        frames = {name: [self.paddr(vaddr) >> 12 for vaddr in some] for name, some in vaddrs.items()}
        frames["tables"] = [
            step.table_pfn for at in (self.zone, START_KERNEL_MAP) for step in self.tables.walk(at).steps
        ]
        return frames


@pytest.fixture(scope="module")
def kernel(golden: Golden) -> Iterator[Damaged]:
    with open_memory(golden(DUMP)) as source:
        yield Damaged(source)


def refusal(kernel: Damaged, memory: PhysicalMemory) -> str:
    with pytest.raises(HibernautError) as error:
        kernel_state(memory, kernel.text)
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("symbol", "value", "size_bytes", "expected"),
    [
        ("orig_bm", 0, 8, "its list of pages is empty"),
        ("forbidden_pages_map", 0, 8, "it is not hibernating"),
        ("in_suspend", 0, 4, "in_suspend is 0"),
        ("nr_copy_pages", 19951, 4, "the copy is done already"),
        ("e820_table_firmware", 0, 8, "e820_table_firmware: nothing to read at 0x0"),
        ("restore_cr3", 0x5000, 8, "map restore_registers nowhere; expected 0x19d5000"),
        ("node_data", 0x1234, 8, "no address of the kernel's"),
    ],
)
def test_variables_that_rule_it_out(kernel: Damaged, symbol: str, value: int, size_bytes: int, expected: str) -> None:
    """Before, after and outside the copy the list is no list to save by; and what contradicts itself is refused."""
    memory = kernel.with_u64(kernel.address(symbol), value, size_bytes)
    assert expected in refusal(kernel, memory)


def test_an_empty_list(kernel: Damaged) -> None:
    """A list without a zone, and one whose bits are all clear."""
    head = kernel.address("orig_bm")
    assert "its list of pages is empty" in refusal(kernel, kernel.with_u64(head, head))
    memory = Overlay(kernel.memory)
    leaf = kernel.leaf
    while leaf != kernel.zone + 32:
        memory.write_page(kernel.paddr(kernel.u64(leaf + 16)) >> 12, np.zeros(4096, dtype=np.uint8))
        leaf = kernel.u64(leaf)
    assert "its list of pages is empty" in refusal(kernel, memory)


def test_a_list_that_is_being_made(kernel: Damaged) -> None:
    """Frames are put on it in ascending order: without its last page it lacks the kernel's node data."""
    last = kernel.u64(kernel.u64(kernel.zone + 40) + 16)
    memory = Overlay(kernel.memory)
    memory.write_page(kernel.paddr(last) >> 12, np.zeros(4096, dtype=np.uint8))
    assert "its list of pages is not finished" in refusal(kernel, memory)


@pytest.mark.parametrize(
    ("what", "at", "value", "expected"),
    [
        ("zone", 48, 1 << 60, "a zone has the frames 0x1000000000000000 to"),
        ("zone", 56, 1 << 40, "more pages of bits than memory has pages"),
        ("zone", 56, 0x18000, "a zone has 2 leaves; expected 3"),
        ("zone", 56, 0xF000, "set in a zone that ends at 0xf000"),
        ("zone", 56, 0x7000, "the list has no end"),
        ("zone", 0, None, "the list is broken"),
        ("zone", 8, 0, "the list is broken"),
        ("leaf", 0, None, "the list is broken"),
        ("leaf", 8, 0, "the list is broken"),
        ("leaf", 16, 0xDEAD_BEEF_0000_0000, "orig_bm's bits: nothing to read at 0xdeadbeef00000000: non-canonical"),
    ],
)
def test_lists_that_contradict_themselves(
    kernel: Damaged, what: str, at: int, value: int | None, expected: str
) -> None:
    """Loops, links back that lead elsewhere, bounds that no memory has."""
    record = getattr(kernel, what)
    memory = kernel.with_u64(record + at, record if value is None else value)
    assert expected in refusal(kernel, memory)


@pytest.mark.parametrize("entries", [0, 3201, 0xFFFF_FFFF])
def test_an_e820_table_has_bounds(kernel: Damaged, entries: int) -> None:
    """Its count sizes nothing before it was looked at."""
    memory = kernel.with_u64(kernel.u64(kernel.address("e820_table_firmware")), entries, 4)
    assert f"has {entries} entries; expected 1 to 3200" in refusal(kernel, memory)


@pytest.mark.parametrize("count", [0, (1 << 20) + 1, 0xFFFF_FFFF])
def test_kallsyms_has_bounds(kernel: Damaged, count: int) -> None:
    """Nor does the number of symbols."""
    memory = kernel.with_u64(int(kernel.facts["SYMBOL(kallsyms_num_syms)"], 16), count, 4)
    assert f"kallsyms_num_syms is {count}" in refusal(kernel, memory)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("OFFSET(pglist_data.node_spanned_pages)", "171584", "not laid out as known"),
        ("LENGTH(node_data)", "99999999", "LENGTH"),
        ("SIZE(pglist_data)", "-5", "SIZE"),
        ("NUMBER(phys_base)", "no number", "does not say where"),
        ("SYMBOL(kallsyms_num_syms)", "", "has no SYMBOL"),
        ("SYMBOL(kallsyms_names)", "ffffffffffffffffffffff", "kallsyms cannot be read"),
    ],
)
def test_vmcoreinfo_is_not_trusted(kernel: Damaged, key: str, value: str, expected: str) -> None:
    """What it says is checked like everything else."""
    text = kernel.text.replace(f"{key}={kernel.facts[key]}".encode(), f"{key}={value}".encode())
    with pytest.raises(HibernautError, match=expected):
        kernel_state(kernel.memory, text)


@pytest.mark.parametrize("seed", range(60))
def test_damage_ends_in_one_line(kernel: Damaged, seed: int) -> None:
    """Random damage to any frame that is read: a state or an error of ours, never anything else."""
    chance = random.Random(seed)
    frames = kernel.frames()
    name = sorted(frames)[seed % len(frames)]
    memory = Overlay(kernel.memory)
    for pfn in chance.sample(frames[name], chance.randint(1, min(3, len(frames[name])))):
        page = np.array(kernel.memory.frame(pfn))
        damage(page, chance)
        memory.write_page(pfn, page)
    pfns, line = outcome(kernel, memory)
    assert "\n" not in line
    assert len(pfns) <= kernel.memory.ranges.total_pages
    assert (np.diff(pfns) > 0).all()


def outcome(kernel: Damaged, memory: PhysicalMemory) -> tuple[Frames, str]:
    try:
        return kernel_state(memory, kernel.text).pfns, ""
    except HibernautError as error:
        return np.empty(0, dtype=np.int64), str(error)


def damage(page: Any, chance: random.Random) -> None:
    """Change a page in one of several ways."""
    way = chance.randrange(5)
    if way == 0:
        page[chance.randrange(4096)] = chance.randrange(256)
    elif way == 1:
        wild = [0, (1 << 64) - 1, 0xFFFF_8880_0000_0000 + chance.randrange(1 << 28), chance.getrandbits(64)]
        page.view("<u8")[chance.randrange(512)] = chance.choice(wild)
    elif way == 2:
        page[:] = chance.choice([0, 255])
    elif way == 3:
        page[:] = np.frombuffer(chance.randbytes(4096), dtype=np.uint8)
    else:
        for _ in range(30):
            page[chance.randrange(4096)] = chance.randrange(256)


def test_frames_that_the_dump_lacks(kernel: Damaged) -> None:
    """A list that names frames that were not dumped is no list to save by."""
    first = int(kernel_state(kernel.memory, kernel.text).pfns[0])
    segments = [
        Segment(start, kernel.memory.run(start, pages))
        for low, length in kernel.memory.ranges
        for start, pages in ((low, first - low), (first + 1, low + length - first - 1))
        if low <= first < low + length
    ]
    segments += [
        Segment(low, kernel.memory.run(low, length))
        for low, length in kernel.memory.ranges
        if not low <= first < low + length
    ]
    assert f"1 of the 19951 frames on the kernel's list are not in memory, the first is {first:#x}" in refusal(
        kernel, SegmentMemory(segments)
    )
