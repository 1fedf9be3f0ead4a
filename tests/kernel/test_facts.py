# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of its machine that a kernel keeps. Witness: the info page that the same kernel wrote."""

from __future__ import annotations

import pytest

from hibernaut.kernel.facts import compute_e820_crc32, image_compressor, machine_facts
from hibernaut.kernel.layouts import HAND_WRITTEN, StructureLayout
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.swsusp import open_image
from tests.conftest import Golden
from tests.kernel.stopped import StoppedKernel, refusal

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn capstone")


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.1-low2m.img", "swap-6.12-lz4.img"])
def test_machine_facts_are_the_info_pages(golden: Golden, name: str) -> None:
    """In the memory that an image holds, KASLR or not: the e820 checksum and the pages that its info page has."""
    expected = golden.expected[name]
    with open_image(golden(name)) as image:
        facts = machine_facts(image.memory())
    assert f"{facts.e820.crc32:#x}" == expected["e820_checksum"]
    assert facts.physical_pages == expected["physical_pages"]
    assert facts.release.startswith("6.12.107" if "6.12" in name else "6.1.0-56")


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def test_the_compressor_is_that_of_the_image(golden: Golden, name: str) -> None:
    """The kernel in the image's memory names the compressor that the flags of its header name."""
    with open_image(golden(name)) as image:
        assert image_compressor(SymbolicKernel(image.memory())) == image.header.compressor


@pytest.mark.parametrize("entries", [0, 3201, 0xFFFF_FFFF])
def test_an_e820_table_has_bounds(kernel: StoppedKernel, entries: int) -> None:
    """Its count is checked before it sizes an allocation."""
    memory = kernel.with_u64(kernel.u64(kernel.address("e820_table_firmware")), entries, 4)
    assert f"has {entries} entries; expected 1 to 3200" in refusal(kernel, memory)


def test_layouts_can_come_from_elsewhere(kernel: StoppedKernel) -> None:
    """Readers ask the layouts that the kernel was opened with, and only those."""

    class Recorded:
        asked: list[str] = []

        def structure(self, name: str) -> StructureLayout:
            self.asked.append(name)
            return HAND_WRITTEN.structure(name)

    recorded = Recorded()
    opened = SymbolicKernel(kernel.memory, kernel.text, layouts=recorded)
    assert compute_e820_crc32(opened) == machine_facts(kernel.memory, kernel.text).e820.crc32
    assert sorted(recorded.asked) == ["e820_entry", "e820_table"]
