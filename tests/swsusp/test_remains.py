# SPDX-License-Identifier: GPL-2.0-or-later
"""The scan for remains of images: every unit, map page, info page and list that is there, and nothing that is not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.memory.page import Bytes
from hibernaut.swsusp import open_image
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.salvage import Remains, scan_area
from hibernaut.swsusp.salvage.fragments import map_fragments
from hibernaut.volumes.files import PlainFile, open_plain
from tests.swsusp import naive
from tests.swsusp.test_salvage import B, damaged, device, noise


def scan(path: Path) -> Remains:
    """Scan a whole file."""
    with open_plain(path) as file:
        return scan_area(SwapArea(file, 0, file.size_bytes))


@pytest.mark.parametrize("compressor", ["lzo", "lz4", "none"])
def test_an_image_without_a_header_is_found_whole(tmp_path: Path, compressor: str) -> None:
    """Its chain of map pages, its info page, all of its units, between noise."""
    path = tmp_path / "device"
    content = device(compressor)
    path.write_bytes(content)
    with open_image(path) as image:
        units = len(image.stream.index) if compressor != "none" else 0
        entries = len(image.swap_map.entries)
        info_block = int(image.swap_map.entries[0])
    path.write_bytes(damaged(content, [(0, bytes(B))]) + noise(50))
    (found,) = scan(path).maps
    assert (found.ended, found.entries, found.whole_units, found.named) == (True, entries, units, False)
    assert found.info is not None
    assert found.info.block == info_block


def test_two_images_in_one_device(tmp_path: Path) -> None:
    """The older one begins behind the newer; both chains are found apart."""
    path = tmp_path / "device"
    pages: dict[int, bytes | None] = {pfn: bytes([pfn % 251]) * B for pfn in range(64, 900)}
    newer = naive.build(pages, naive.Layout(compressor="none", kernel_order=True))
    shift = len(newer) // B
    layout = naive.Layout(compressor="lzo", kernel_order=True, first_block=shift)
    again = naive.build({pfn: bytes([pfn % 13]) * B for pfn in range(64, 300)}, layout)
    path.write_bytes(newer + again[shift * B :])
    found = scan(path)
    assert [(one.named, one.ended, one.info is not None) for one in found.maps] == [
        (True, True, True),
        (False, True, True),
    ]


def test_units_without_a_map(tmp_path: Path) -> None:
    """Runs of units with their lists of frames, and the info page, once all map pages are overwritten."""
    path = tmp_path / "device"
    content = device("lz4")
    path.write_bytes(content)
    with open_image(path) as image:
        maps = image.swap_map.map_blocks.tolist()
        units = len(image.stream.index)
        info = int(image.swap_map.entries[0])
    path.write_bytes(damaged(content, [(block * B, noise(1, block)) for block in maps]))
    found = scan(path)
    assert found.maps == ()
    assert [one.block for one in found.infos] == [info]
    split = len(maps) - 1  # units that a map page divides cannot be put together without it
    assert units - split <= sum(run.units for run in found.runs) <= units
    assert found.runs[0].lists == 1
    assert {run.compressor for run in found.runs} == {"lz4"}


def test_a_list_of_frames_without_a_map(tmp_path: Path) -> None:
    """Neighbouring pages of ascending numbers, in an image that is not compressed."""
    path = tmp_path / "device"
    content = device("none")
    path.write_bytes(content)
    with open_image(path) as image:
        edits = [(block * B, noise(1, block)) for block in image.swap_map.map_blocks.tolist()]
        first = int(image.swap_map.entries[1])
        meta, pfns = image.info.meta_pages, image.pfns
    path.write_bytes(damaged(content, edits))
    found = scan(path).lists
    assert [(one.block, one.pages, one.first_pfn, one.last_pfn) for one in found] == [
        (first, meta, int(pfns[0]), int(pfns[-1]))
    ]


@given(seed=st.integers(0, 1 << 30), kind=st.sampled_from(["noise", "small", "ascending", "zero"]))
def test_other_data_is_not_taken_for_an_image(tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str) -> None:
    """Noise, small numbers, ascending tables, zeroes: no map, no info page, no unit."""
    rng = np.random.default_rng(seed)
    words = {
        "noise": rng.integers(0, 1 << 63, 64 * 512),
        "small": rng.integers(0, 60, 64 * 512),
        "ascending": np.cumsum(rng.integers(0, 2, 64 * 512)),
        "zero": np.zeros(64 * 512, dtype=np.int64),
    }[kind]
    path = tmp_path_factory.mktemp("scan") / "device"
    path.write_bytes(words.astype("<u8").tobytes())
    found = scan(path)
    assert (found.infos, found.runs) == ((), ())
    assert all(not one.info and not one.whole_units for one in found.maps)


def test_holes_of_a_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images far apart in a sparse file are found where they are; what lies between takes no read."""
    content = device("lzo")
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    far = 300 << 20
    for path in (sparse, full):
        with path.open("wb") as out:
            out.write(content)
            if path == full:
                out.write(bytes(far - len(content)))
            out.seek(far)
            out.write(content[B:])
            out.truncate(far + (100 << 20))
    assert sparse.stat().st_blocks < full.stat().st_blocks, "the file system keeps no holes"
    read: list[int] = []
    read_into = PlainFile.pread_into

    def counted(self: PlainFile, offset: int, out: Bytes) -> int:
        read.append(len(out))
        return read_into(self, offset, out)

    monkeypatch.setattr(PlainFile, "pread_into", counted)
    found = scan(sparse)
    of_sparse = sum(read)
    assert scan(full) == found
    assert {one.block * B < far for one in found.infos} | {one.first_block * B < far for one in found.maps} == {
        True,
        False,
    }
    assert of_sparse < (sum(read) - of_sparse) / 3
    chains = []
    for path in (sparse, full):
        with open_plain(path) as file:
            area = SwapArea(file, 0, file.size_bytes)
            chains.append([[page.block for page in chain.pages] for chain in map_fragments(area)])
    assert chains[0] == chains[1] != []


def test_the_end_of_a_file_is_not_a_hole(tmp_path: Path) -> None:
    """A file that is cut while it is open ends there: blocks behind the end are not counted as read."""
    path = tmp_path / "device"
    with path.open("wb") as out:
        out.truncate(64 << 20)
    with open_plain(path) as file:
        area = SwapArea(file, 0, file.size_bytes)
        assert scan_area(area).blocks == area.blocks
        assert area.is_hole(0, area.blocks)
        os.truncate(path, 24 << 20)
        assert not area.is_hole(0, area.blocks)
        assert not area.is_hole(area.blocks - 1, 1)
        assert area.is_hole(0, (24 << 20) // B)


def test_an_area_with_larger_pages_is_not_scanned(tmp_path: Path) -> None:
    """Its blocks are counted in them: nothing would be found where there is something."""
    path = tmp_path / "device"
    path.write_bytes(bytes(1 << 16))
    with (
        open_plain(path) as file,
        pytest.raises(FormatError, match="pages of 16384 bytes is not scanned"),
    ):
        scan_area(SwapArea(file, 0, file.size_bytes, page_size=1 << 14))
