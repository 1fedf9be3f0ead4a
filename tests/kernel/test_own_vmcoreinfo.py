# SPDX-License-Identifier: GPL-2.0-or-later
"""Several kernels' VMCOREINFO in one memory: the machine's own is taken, whatever its length and place."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.hibernation.examination import examine
from hibernaut.hibernation.machine_in_source import machine_in
from hibernaut.kernel.core_file import convert
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.kernel.own_vmcoreinfo import choose_vmcoreinfo, with_own_vmcoreinfo
from hibernaut.linux.build import build_machine
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo, find_vmcoreinfos, page_table_root, parse_vmcoreinfo
from hibernaut.paging.tables import PageTables
from hibernaut.sources import Source, open_memory
from hibernaut.studies.demo import demo_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hibernaut.memory.physical import PhysicalMemory
    from tests.conftest import Golden

DUMP = "ram-6.1-lzo.elf"
RELEASE = "6.1.0-56-amd64"
FREE_PFNS = (0x300, 0x7064)
"""Frames of the dump that are zero, below and above the kernel's own texts."""


def elsewhere(text: bytes, release: bytes, root: int = 0xFFFFFFFFB6A0A000) -> bytes:
    """Return the text of another kernel, whose swapper_pg_dir is there."""
    other = re.sub(rb"SYMBOL\(swapper_pg_dir\)=[0-9a-f]+", b"SYMBOL(swapper_pg_dir)=%x" % root, text)
    return re.sub(rb"OSRELEASE=\S+", b"OSRELEASE=" + release, other)


@pytest.fixture
def source(golden: Golden) -> Iterator[Source]:
    """The dump of a 6.1 stopped in swsusp_save."""
    with open_memory(golden(DUMP)) as opened:
        yield opened


def root_of(source: Source) -> tuple[int, int]:
    """Return CR3 and levels, as the dump says."""
    assert source.cr3 is not None
    assert source.levels is not None
    return source.cr3, source.levels


def own_text(source: Source) -> bytes:
    """Return the text of the kernel in the dump."""
    text = find_vmcoreinfo(source.memory)
    assert text is not None
    return text


def with_texts(source: Source, *texts: bytes) -> Source:
    """Return the source with further texts in memory."""
    overlay = Overlay(source.memory)
    for pfn, text in zip(FREE_PFNS, texts, strict=False):
        assert not np.any(overlay.page(pfn))
        overlay.write(pfn << 12, text + b"\x00")
    return replace(source, memory=overlay)


OTHERS: dict[str, Callable[[bytes], bytes]] = {
    "longer": lambda text: elsewhere(text, b"7.3.4+deb13-amd64") + b"NUMBER(guest_only)=1\n",
    "as long": lambda text: elsewhere(text, b"7.3.4-56-amd64"),
    "a root in RAM without a table": lambda text: elsewhere(text, b"7.3.4", 0xFFFFFFFF83000000) + b"A=1\n" * 9,
    "a root that these tables map elsewhere": lambda text: elsewhere(text, b"7.3.4", 0xFFFFFFFF81000000) + b"A=1\n" * 9,
    "a root of zeroes": lambda text: elsewhere(text, b"7.3.4", 0xFFFFFFFF80300000) + b"A=1\n" * 9,
}


@pytest.mark.parametrize("kind", sorted(OTHERS))
@pytest.mark.parametrize("known", ["CR3 and levels", "CR3", ""])
def test_the_kernel_of_this_root(source: Source, kind: str, known: str) -> None:
    """With a known CR3, as of an image without its levels, and without it the choice is 6.1's; the other is listed."""
    text = own_text(source)
    both = with_texts(source, OTHERS[kind](text))
    assert (find_vmcoreinfo(both.memory) == text) is (kind == "as long" and OTHERS[kind](text) > text)
    cr3, levels = root_of(both)
    root = (cr3, levels if known.endswith("levels") else None) if known else None
    chosen, found = with_own_vmcoreinfo(both, root)
    assert (chosen.vmcoreinfo, found.text) == (text, text)
    assert [parse_vmcoreinfo(other)["OSRELEASE"][:5] for other in found.others] == ["7.3.4"]
    assert found.remark is not None
    assert found.remark.startswith(f"VMCOREINFO of 2 kernels in memory: {RELEASE} is this machine's, not 7.3.4")
    assert KernelMemory(both.memory).release == RELEASE


def test_the_machine_and_its_list_are_this_kernels(source: Source) -> None:
    """Rules, list of pages, remark."""
    both = with_texts(source, *(OTHERS[kind](own_text(source)) for kind in ("longer", "as long")))
    found = machine_in(both)
    assert (found.rules.rules.line, found.pages.pages_from, len(found.machine.saveable or ())) == (
        "6.1",
        "kernel",
        len(machine_in(source).machine.saveable or ()),
    )
    start = "VMCOREINFO of 2 kernels in memory: 6.1.0-56-amd64 is this machine's, not 7.3.4"
    assert len([remark for remark in found.remarks if remark.startswith(start)]) == 1


def test_a_core_gets_the_note_of_this_kernel(source: Source, tmp_path: Path) -> None:
    """`convert --to elf` writes the machine's own text, by which drgn opens it."""
    text = own_text(source)
    convert(with_texts(source, OTHERS["longer"](text)), tmp_path / "core.elf", "elf")
    with open_memory(tmp_path / "core.elf") as core:
        assert core.vmcoreinfo == text


def test_another_kernels_note_is_left_aside(source: Source) -> None:
    """A note that names no root of this machine gives way to the text in memory."""
    text = own_text(source)
    other = OTHERS["longer"](text)
    chosen, found = with_own_vmcoreinfo(replace(source, vmcoreinfo=other), root_of(source))
    assert (chosen.vmcoreinfo, found.others) == (text, (other,))
    assert with_own_vmcoreinfo(replace(source, vmcoreinfo=text), root_of(source))[0].vmcoreinfo == text


def test_only_another_kernels(source: Source) -> None:
    """Without its own text the machine has none: no rules of a guest, and a reason that names it."""
    other = OTHERS["longer"](own_text(source))
    memory = Overlay(source.memory)
    found = choose_vmcoreinfo(memory, [other], root_of(source))
    assert (found.text, found.others) == (None, (other,))
    assert found.remark is not None
    assert "none is known to be this machine's, not 7.3.4" in found.remark
    with pytest.raises(FormatError, match="no VMCOREINFO"):
        KernelMemory(memory, b"")


def test_two_kernels_that_both_map_themselves(source: Source) -> None:
    """Without CR3 nothing decides between two roots that map themselves; each of them decides when it is known."""
    text = own_text(source)
    root, _ = page_table_root(parse_vmcoreinfo(text))
    assert root is not None
    twin = (root >> 12) + 16  # in the kernel's image, too
    table = source.memory.page(root >> 12)
    assert table is not None
    overlay = Overlay(source.memory)
    copied = table.view(np.uint64).copy()
    overlay.write_page(twin, copied.view(np.uint8))
    twin_vaddr = 0xFFFFFFFF80000000 + (twin << 12)
    leaf = PageTables(overlay, root, 4).walk(twin_vaddr)
    assert leaf.paddr == twin << 12
    old = elsewhere(text, b"6.0.0", twin_vaddr)
    found = choose_vmcoreinfo(overlay, [text, old], None)
    assert (found.text, set(found.others)) == (None, {text, old})
    copied[511] += 1 << 12  # the image of the kernel before kexec lies elsewhere
    overlay.write_page(twin, copied.view(np.uint8))
    assert choose_vmcoreinfo(overlay, [old, text], (source.cr3 or 0, 4)).text == text
    assert choose_vmcoreinfo(overlay, [text, old], (twin << 12, 4)).text == old


def test_all_texts_are_found(source: Source) -> None:
    """Each once, the longest first: 6.1 has two copies of one text."""
    text = own_text(source)
    assert find_vmcoreinfos(source.memory) == (text,)
    longer = OTHERS["longer"](text)
    assert find_vmcoreinfos(with_texts(source, longer).memory) == (longer, text)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames of each memory that is searched for texts."""
    found: list[int] = []

    def searched(memory: PhysicalMemory) -> tuple[bytes, ...]:
        found.append(memory.ranges.total_pages)
        return find_vmcoreinfos(memory)

    for module in ("own_vmcoreinfo", "kernel_memory"):
        monkeypatch.setattr(f"hibernaut.kernel.{module}.find_vmcoreinfos", searched)
    return found


def test_an_examination_searches_memory_once_and_names_the_other_kernel(source: Source, searches: list[int]) -> None:
    """Its questions share the text that is found; the kernel is the machine's own, the other is in the remarks."""
    found = examine(with_texts(source, elsewhere(own_text(source), b"7.3.4")))
    assert len(searches) == 1
    assert found.identity is not None
    assert found.identity.release == RELEASE
    assert any("VMCOREINFO of 2 kernels" in remark and "7.3.4" in remark for remark in found.remarks)


def test_memory_without_a_kernel_is_searched_once(searches: list[int]) -> None:
    """A simulated machine has no text, which no question looks for again."""
    machine = build_machine(demo_layout())
    found = examine(
        Source(machine.memory, "raw", "simulated", cr3=machine.cr3, levels=machine.levels, gaps_from="--gap")
    )
    assert (len(searches), found.identity) == (1, None)
    assert any("no VMCOREINFO in memory" in remark for remark in found.remarks)
