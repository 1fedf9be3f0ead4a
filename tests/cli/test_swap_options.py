# SPDX-License-Identifier: GPL-2.0-or-later
"""`--swap`: several areas, told apart by their UUIDs. The kernel of 6.12's image has three more in these tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hibernaut.cli.machine_options import MachineInside, SwapOptions
from hibernaut.errors import FormatError
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.swap_areas import swap_areas
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.sources import Source, open_memory
from tests.cli.run import NEXT
from tests.conftest import Golden

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

SLOTS, USED = 64, 5
FIRST, SECOND, NONE = uuid.UUID(int=0xA1 << 64 | 1), uuid.UUID(int=0xB2 << 64 | 2), None
AREAS = (FIRST, SECOND, NONE)
"""UUIDs of areas 1 to 3 as the kernel has them."""


class SeveralAreas:
    """The source with areas 1 to 3 besides that of its image, each in a page of its own, with its header in another."""

    def __init__(self, source: Source, uuids: tuple[uuid.UUID | None, ...]) -> None:
        self.memory = Overlay(source.memory)
        self.before = Kernel.of(source)
        self.source = replace(source, memory=self.memory)
        (area,) = swap_areas(self.before)
        original = self.before.object("struct swap_info_struct", area.address)
        table = self.before["swap_info"]
        self.places: list[int] = []
        spare = source.memory.ranges.pfns()[-2 * len(uuids) :].tolist()
        for number, known in enumerate(uuids, start=1):
            place, header = spare.pop(), spare.pop()
            self.memory.write_page(place, np.zeros(PAGE_SIZE, dtype=np.uint8))
            self.memory.write_page(header, np.frombuffer(header_of(known), dtype=np.uint8))
            at = int(self.before["PAGE_OFFSET"]) + (place << 12)
            info = self.copy(original, at)
            file = self.copy(original.swap_file[0], at + 1024)
            mapping = self.copy(original.swap_file.f_mapping[0], at + 2048)
            page = int(self.before["vmemmap"]) + header * self.before.number("SIZE(page)")
            self.put(mapping.i_pages.xa_head, page if known is not None else 0)
            self.put(file.f_mapping, at + 2048)
            for member, value in {
                "swap_file": at + 1024,
                "max": SLOTS,
                "swap_map": at + 3072,
                "zeromap": 0,
                "inuse_pages": USED,
            }.items():
                self.put(info.member_(member), value)
            self.memory.write((place << 12) + 3072, bytes([1]) * SLOTS)
            self.put(table[number], at)
            self.places.append(at)
        self.put(self.before["nr_swapfiles"], len(uuids) + 1)

    def copy(self, thing: Any, to: int) -> Any:
        """Copy an object of the kernel's, and return the copy."""
        self.memory.write(self.paddr(to), self.before.read(int(thing.address_), thing.type_.size, "object"))
        return self.before.object(thing.type_.type_name(), to)

    def put(self, place: Any, value: int) -> None:
        """Write a number or a pointer."""
        self.memory.write(self.paddr(int(place.address_)), value.to_bytes(drgn.sizeof(place), "little"))

    def paddr(self, vaddr: int) -> int:
        """Return the physical address."""
        found = self.before.tables.walk(vaddr).paddr
        assert found is not None
        return found

    def open_memory(self, _options: Any, _path: Path, _quiet: bool) -> Source:
        """In place of `SalvageOptions.open_memory`."""
        return self.source

    @contextmanager
    def opened(self, *swap: str) -> Iterator[MachineInside]:
        """Open the source with these files."""
        options: Any = None
        salvage: Any = self
        with SwapOptions(list(swap)).open(options, salvage, Path("image"), False) as inside:
            yield inside


def header_of(known: uuid.UUID | None, slots: int = SLOTS) -> bytes:
    """Return the header page of an area."""
    header = bytearray(PAGE_SIZE)
    header[1024:1028] = (1).to_bytes(4, "little")
    header[1028:1032] = (slots - 1).to_bytes(4, "little")
    header[1036:1052] = bytes(16) if known is None else known.bytes
    header[-10:] = b"SWAPSPACE2"
    return bytes(header)


def page_of(mark: int, slot: int) -> bytes:
    """Return the page in a slot of a file."""
    return bytes([mark, slot]) * (PAGE_SIZE // 2)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files with areas: those of the kernel, and of another machine."""
    made = {}
    for mark, (name, known) in enumerate({"a": FIRST, "b": SECOND, "c": NONE, "alien": uuid.UUID(int=7)}.items()):
        path = tmp_path / name
        path.write_bytes(header_of(known) + b"".join(page_of(mark, slot) for slot in range(1, SLOTS)))
        made[name] = str(path)
    return made


@pytest.fixture
def source(golden: Golden) -> Iterator[Source]:
    """The image of a guest whose page cache has the header of its area."""
    with open_memory(golden("swap-6.12-lz4.img")) as opened:
        yield opened


@pytest.fixture
def machine(source: Source) -> SeveralAreas:
    """Its machine with three more areas."""
    return SeveralAreas(source, AREAS)


def pages(inside: MachineInside, number: int) -> tuple[bytes, list[str | None]]:
    """Return the pages in slots 3, 4 and 63 of an area, and why they are nowhere."""
    out = np.zeros((3, PAGE_SIZE), dtype=np.uint8)
    reasons = inside.swapped.read(number, np.array([3, 4, 63]), out)
    return out.tobytes(), reasons


def right(mark: int) -> tuple[bytes, list[str | None]]:
    """Return what `pages` returns for the area of a file."""
    return b"".join(page_of(mark, slot) for slot in (3, 4, 63)), [None] * 3


def test_areas_are_told_apart_by_their_uuids(
    machine: SeveralAreas, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In whatever order the files are given; the area that is not given is named, and the reason of its pages."""
    with machine.opened(files["b"], files["a"]) as inside:
        assert [area.uuid for area in inside.swapped.areas.values()][1:] == list(AREAS)
        assert pages(inside, 1) == right(0)
        assert pages(inside, 2) == right(1)
        content, reasons = pages(inside, 3)
        assert not any(content)
        assert set(reasons) == {"swap area 3 (/dev/vda) is not given"}
        assert sorted(inside.swapped.files) == [0, 1, 2]  # area 0 is that of the image, by its UUID
    said = capsys.readouterr().err.splitlines()
    assert said == ["hibernaut: swap area 3 (/dev/vda) holds 5 pages; give it with --swap 3=PATH"]


def test_an_area_whose_uuid_is_unknown(
    machine: SeveralAreas, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with as many slots is taken for it, with a remark; with the number it is taken at the user's word."""
    with machine.opened(files["a"], files["b"], files["c"]) as inside:
        assert pages(inside, 3) == right(2)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"hibernaut: {files['c']}: taken for swap area 3 by its number of slots; ")
    with machine.opened(f"3={files['alien']}", files["a"], files["b"]) as inside:
        assert pages(inside, 3) == right(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("uuids", "swap", "words"),
    [
        ((FIRST, SECOND), ("alien",), r"its UUID is 0+-.*-0+7, that of swap area 1 is 0+-.*; its UUID is .* area 2 is"),
        ((FIRST, SECOND), ("1=b",), r"its UUID is 0+-.*2, that of swap area 1 is 0+-.*; give another file"),
        ((FIRST, SECOND), ("c",), r"its UUID is none, that of swap area 1 is"),
        ((FIRST, FIRST), ("a",), r"it has as many slots \(64\) as 2 swap areas of the machine"),
        ((FIRST, SECOND), ("a", "a"), r"swap area 1 has another file, .*/a: .*/a; give one file for each area"),
        ((FIRST, SECOND), ("a", "1=a"), r"swap area 1 has another file, .*/a: .*/a; give one file for each area"),
        ((NONE, NONE), ("c",), r"it has as many slots \(64\) as 2 swap areas of the machine"),
        ((FIRST, SECOND), ("9=a",), "the kernel uses no swap area 9"),
    ],
)
def test_files_that_are_not_the_machines(
    source: Source, files: dict[str, str], uuids: tuple[uuid.UUID | None, ...], swap: tuple[str, ...], words: str
) -> None:
    """A wrong UUID, one of several areas, or a second file for an area: one line, nothing is read."""
    named = [f"{one[:2]}{files[one[2:]]}" if "=" in one else files[one] for one in swap]
    with pytest.raises(FormatError, match=words) as error, SeveralAreas(source, uuids).opened(*named):
        pass
    assert "\n" not in str(error.value)
    assert NEXT.search(str(error.value)) or "expected" in str(error.value)


def test_two_areas_of_one_uuid_by_number(source: Source, files: dict[str, str]) -> None:
    """Clones are told apart by the numbers that the user gives."""
    with SeveralAreas(source, (FIRST, FIRST)).opened(f"2={files['a']}") as inside:
        assert pages(inside, 2) == right(0)
        assert set(pages(inside, 1)[1]) == {"swap area 1 (/dev/vda) is not given"}


def test_a_clone_of_the_images_own_area(source: Source) -> None:
    """Of two areas that fit the image's header, the image's own is the one that the kernel writes its image to."""
    assert source.image is not None
    own = swap_areas(Kernel.of(source))[0]
    machine = SeveralAreas(source, (own.uuid,))
    machine.put(machine.before.object("struct swap_info_struct", machine.places[0]).max, own.slots)
    with machine.opened() as inside:
        assert [area.fits(source.image.header.block, 0) for area in inside.swapped.areas.values()] == [True, True]
        assert list(inside.swapped.files) == [0]
