# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer, read back by the naive parser, and judged by util-linux."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.swsusp import Image, open_image
from hibernaut.swsusp.codecs import COMPRESSORS, CompressorName
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import ExistingArea, NewArea, write_image
from tests.conftest import Golden
from tests.strategies import image_layouts, saved_pages
from tests.swsusp import naive

INFO = ImageInfo.blank(cr3=0x1000, physical_pages=1 << 16)


def memory_of(pages: dict[int, bytes | None]) -> SegmentMemory:
    """Return a memory of these pages."""
    return SegmentMemory(
        [
            Segment(pfn, np.frombuffer(page or bytes(4096), dtype=np.uint8).reshape(1, 4096))
            for pfn, page in pages.items()
        ]
    )


@given(pages=saved_pages(), compressor=st.sampled_from(COMPRESSORS), zero_pages=st.booleans())
def test_a_written_image_reads_back_naively(
    tmp_path_factory: pytest.TempPathFactory,
    pages: dict[int, bytes | None],
    compressor: CompressorName,
    zero_pages: bool,
) -> None:
    """The naive parser finds every page; with elision exactly the zero pages have no data page."""
    path = tmp_path_factory.mktemp("new") / "image"
    pfns = np.array(sorted(pages), dtype=np.int64)
    written = write_image(path, memory_of(pages), pfns, INFO, NewArea(), compressor=compressor, zero_pages=zero_pages)
    found, used = naive.parse(path.read_bytes())
    zero = {pfn for pfn, page in pages.items() if not any(page or b"")}
    assert {pfn for pfn, page in found.items() if page is None} == (zero if zero_pages else set())
    assert {pfn: page or bytes(4096) for pfn, page in found.items()} == {
        pfn: page or bytes(4096) for pfn, page in pages.items()
    }
    assert written.blocks == len(used)
    assert written.stored_pages == sum(page is not None for page in found.values())


@given(pages=saved_pages(), layout=image_layouts(), seed=st.integers(0, 1 << 30))
def test_into_an_existing_area_only_its_image_changes(
    tmp_path_factory: pytest.TempPathFactory, pages: dict[int, bytes | None], layout: naive.Layout, seed: int
) -> None:
    """Blocks that are neither the header nor the old image's keep their bytes, and so does the header's other part."""
    folder = tmp_path_factory.mktemp("existing")
    layout.compressor = "none"  # the old image is the largest there can be: the new one fits
    layout.reserved = np.random.default_rng(seed).bytes(4056)
    old = bytearray(naive.build(pages, layout))
    _, old_blocks = naive.parse(bytes(old), layout.header_block)
    others = [block for block in range(len(old) // 4096) if block not in old_blocks and block != layout.header_block]
    for block in others:
        old[block * 4096 : block * 4096 + 4096] = np.random.default_rng(block).bytes(4096)
    (folder / "old").write_bytes(old)
    changed = {pfn: bytes([pfn % 251 + 1]) * 4096 if page else None for pfn, page in pages.items()}
    with open_image(folder / "old", offset=layout.header_block) as image:
        memory, area = memory_of(changed), ExistingArea(image)
        written = write_image(folder / "new", memory, image.pfns, image.info, area, compressor="lzo", zero_pages=True)
    new = (folder / "new").read_bytes()
    assert len(new) == len(old)
    found, used = naive.parse(new, layout.header_block)
    assert found == changed
    assert used <= old_blocks
    assert len(used) == written.blocks
    for block in others:
        assert new[block * 4096 : block * 4096 + 4096] == old[block * 4096 : block * 4096 + 4096]
    at = layout.header_block * 4096
    assert new[at : at + 4056] == old[at : at + 4056]
    assert (folder / "old").read_bytes() == old


@pytest.mark.parametrize("frames", [512 * 1024 - 1, 512 * 1024, 600_000])
def test_a_list_of_pfns_longer_than_a_batch(tmp_path: Path, frames: int) -> None:
    """Machines of 2 GiB and more: meta pages fill whole batches, or end where one does, and the data follows."""
    pages = np.zeros((frames, 4096), dtype=np.uint8)  # nothing is allocated before it is written
    pages[::50_000] = np.arange(4096, dtype=np.uint32).astype(np.uint8)
    pages[::50_000, 0] = np.arange(len(pages[::50_000]))
    memory = SegmentMemory([Segment(0, pages)])
    path = tmp_path / "image"
    write_image(path, memory, np.arange(frames), INFO, NewArea(), compressor="lz4", zero_pages=True)
    found, _ = naive.parse(path.read_bytes())
    assert sorted(found) == list(range(frames))
    stored = {pfn: page for pfn, page in found.items() if page is not None}
    assert stored == {pfn: pages[pfn].tobytes() for pfn in range(0, frames, 50_000)}


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.12-lz4.img", "swap-6.1-low2m.img"])
def test_a_real_image_written_again_is_the_same_image(golden: Golden, tmp_path: Path, name: str) -> None:
    """Same pages, same counts, same CRC; with the kernel's own compressor it fits into the kernel's own blocks."""
    with open_image(golden(name)) as old:
        same_again(old, tmp_path / "new")


def same_again(old: Image, path: Path) -> None:
    """Write an image into a copy of its own area and compare all there is to compare."""
    zero_pages = bool(old.zero.any())
    area = ExistingArea(old)
    written = write_image(
        path, old.memory(), old.pfns, old.info, area, compressor=old.compressor, zero_pages=zero_pages
    )
    with open_image(path) as new:
        assert (new.pfns == old.pfns).all()
        assert (new.zero == old.zero).all()
        assert new.info == old.info
        assert new.header.flags == old.header.flags
        assert new.header.crc32 == old.header.crc32 == written.crc32
        assert (new.read_all() == old.read_all()).all()
        assert np.isin(new.swap_map.blocks, old.swap_map.blocks).all()


def test_an_area_too_small_names_the_missing_blocks(tmp_path: Path) -> None:
    """The number missing is exact: with so many more the image fits, with one less it does not."""
    pages: dict[int, bytes | None] = {pfn: np.random.default_rng(pfn).bytes(4096) for pfn in range(600)}
    pfns = np.arange(600, dtype=np.int64)

    def attempt(blocks: int) -> None:
        write_image(
            tmp_path / "area", memory_of(pages), pfns, INFO, NewArea(blocks * 4096), compressor="none", zero_pages=False
        )

    with pytest.raises(HibernautError, match=r"\d+ blocks of 4096 bytes are missing") as caught:
        attempt(100)
    assert not (tmp_path / "area").exists()
    found = re.search(r"(\d+) blocks", str(caught.value))
    assert found
    missing = int(found[1])
    with pytest.raises(HibernautError, match="1 block of 4096 bytes is missing"):
        attempt(100 + missing - 1)
    attempt(100 + missing)
    naive.parse((tmp_path / "area").read_bytes())


def test_frames_that_memory_lacks_are_refused(tmp_path: Path) -> None:
    """No page is invented: the listed frame that is not there is named, and nothing is written."""
    with pytest.raises(HibernautError, match="1 of the 2 listed frames are not in memory, the first 0x9"):
        write_image(
            tmp_path / "new",
            memory_of({5: bytes(4096)}),
            np.array([5, 9]),
            INFO,
            NewArea(),
            compressor="lzo",
            zero_pages=False,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not shutil.which("file"), reason="needs the command file(1)")
def test_file_knows_a_new_area(tmp_path: Path) -> None:
    """file(1) sees a swap area of the given size that holds an image."""
    path = tmp_path / "area"
    pages: dict[int, bytes | None] = {1: b"x" * 4096}
    write_image(path, memory_of(pages), np.array([1]), INFO, NewArea(64 * 4096), compressor="lzo", zero_pages=False)
    told = subprocess.run(["file", "-b", path], capture_output=True, text=True, check=True).stdout
    assert "swap file" in told
    assert "size 63 pages" in told
    assert "LABEL=hibernaut" in told
    assert "SWSUSP1 image" in told


@pytest.mark.skipif(not shutil.which("swaplabel"), reason="needs swaplabel(8) of util-linux")
def test_swaplabel_knows_a_new_area_once_it_is_resumed(tmp_path: Path) -> None:
    """With `orig_sig` back in its place, as a resuming kernel does it, the area is swap as mkswap makes it."""
    path = tmp_path / "area"
    pages: dict[int, bytes | None] = {1: b"x" * 4096}
    write_image(path, memory_of(pages), np.array([1]), INFO, NewArea(), compressor="lzo", zero_pages=False)
    device = bytearray(path.read_bytes())
    device[4086:4096] = device[4076:4086]
    path.write_bytes(device)
    told = subprocess.run(["swaplabel", path], capture_output=True, text=True, check=True).stdout
    assert re.search(r"LABEL: hibernaut\nUUID: +[0-9a-f-]{36}", told)


def test_written_through_a_partition_only_that_partition_changes(tmp_path: Path) -> None:
    """An area inside a whole disk: bytes before and behind it stay, its blocks keep their numbers."""
    area = naive.build({pfn: bytes([pfn]) * 4096 for pfn in range(1, 40)}, naive.Layout(compressor="none"))
    before, after = np.random.default_rng(1).bytes(63 * 512), np.random.default_rng(2).bytes(10000)
    (tmp_path / "disk").write_bytes(before + area + after)
    with open_image(tmp_path / "disk", base=len(before)) as image:
        target = ExistingArea(image)
        write_image(
            tmp_path / "new", image.memory(), image.pfns, image.info, target, compressor="lzo", zero_pages=False
        )
    new = (tmp_path / "new").read_bytes()
    assert new[: len(before)] == before
    assert new[-len(after) :] == after
    assert naive.parse(new[len(before) : -len(after)])[0] == naive.parse(area)[0]
