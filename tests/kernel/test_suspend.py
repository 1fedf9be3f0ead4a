# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of pages of a kernel that hibernates. Witness: the list and the info page of that kernel's own image."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.errors import HibernautError
from hibernaut.kernel.facts import machine_facts
from hibernaut.kernel.suspend import kernel_state, pages_to_save
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.sources import open_memory
from hibernaut.swsusp import open_image
from tests.conftest import Golden
from tests.kernel.stopped import StoppedKernel, refusal

PAIRS = [("ram-6.1-lzo.elf", "swap-6.1-lzo.img"), ("ram-6.1-low2m.elf", "swap-6.1-low2m.img")]

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn capstone")


@pytest.mark.parametrize(("dump", "image"), PAIRS)
def test_the_kernel_wrote_the_same(golden: Golden, dump: str, image: str) -> None:
    """A 6.1 stopped before the copy has the list and the info page that it then wrote, byte for byte."""
    with open_memory(golden(dump)) as source, open_image(golden(image)) as written:
        state = kernel_state(source.memory, source.vmcoreinfo, name=source.name)
        assert np.array_equal(state.pfns, written.pfns)
        pages = len(written.pfns)
        assert state.info.with_pages(saved_pages=pages, image_pages=pages).page == written.info.page
    assert state.release == "6.1.0-56-amd64"
    assert state.levels == 4


def test_a_kernel_that_does_not_hibernate(golden: Golden) -> None:
    """A running kernel has no list: an error, while the facts of the machine can be read."""
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
    """The list and the info page of an image come from the image, not from its kernel."""
    with open_memory(golden("swap-6.1-lzo.img")) as source:
        answer = pages_to_save(source)
        assert source.image is not None
        assert answer.info is source.image.info
    assert (answer.pages_from, answer.kernel, answer.reason) == ("image", None, None)


@pytest.mark.parametrize(
    ("symbol", "value", "size_bytes", "expected"),
    [
        ("orig_bm", 0, 8, "its list of pages is empty"),
        ("forbidden_pages_map", 0, 8, "it is not hibernating"),
        ("in_suspend", 0, 4, "in_suspend is 0"),
        ("nr_copy_pages", 19951, 4, "the copy is already done"),
        ("e820_table_firmware", 0, 8, "e820_table_firmware: nothing to read at 0x0"),
        ("restore_cr3", 0x5000, 8, "map restore_registers nowhere; expected 0x19d5000"),
        ("node_data", 0x1234, 8, "node_data has an entry 0x1234"),
    ],
)
def test_variables_that_rule_it_out(
    kernel: StoppedKernel, symbol: str, value: int, size_bytes: int, expected: str
) -> None:
    """A list before, after and outside the copy is not used; contradictions are refused."""
    memory = kernel.with_u64(kernel.address(symbol), value, size_bytes)
    assert expected in refusal(kernel, memory)


def test_an_empty_list(kernel: StoppedKernel) -> None:
    """A list without a zone, and one whose bits are all clear."""
    head = kernel.address("orig_bm")
    assert "its list of pages is empty" in refusal(kernel, kernel.with_u64(head, head))
    memory = Overlay(kernel.memory)
    leaf = kernel.leaf
    while leaf != kernel.zone + 32:
        memory.write_page(kernel.paddr(kernel.u64(leaf + 16)) >> 12, np.zeros(4096, dtype=np.uint8))
        leaf = kernel.u64(leaf)
    assert "its list of pages is empty" in refusal(kernel, memory)


def test_a_list_that_is_being_made(kernel: StoppedKernel) -> None:
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
    kernel: StoppedKernel, what: str, at: int, value: int | None, expected: str
) -> None:
    """Loops, links back that lead elsewhere, bounds that no memory has."""
    record = getattr(kernel, what)
    memory = kernel.with_u64(record + at, record if value is None else value)
    assert expected in refusal(kernel, memory)


def test_frames_that_the_dump_lacks(kernel: StoppedKernel) -> None:
    """A list with frames that were not dumped is refused."""
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
