# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw, LiME and ELF files written from a stream, read by naive parsers, pyelftools and drgn's own rules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.memory import declarations
from hibernaut.memory.dump_layout import vmcoreinfo_note
from hibernaut.memory.elf import open_elf
from hibernaut.memory.lime import open_lime
from hibernaut.memory.page import PAGE_SIZE, Bytes, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.vmcoreinfo import chunks_of, find_vmcoreinfo
from hibernaut.memory.writers import HOLE_PAGES, Put, write_elf, write_lime, write_raw
from hibernaut.sources import open_memory
from hibernaut.volumes.output import replacing
from tests.conftest import Golden
from tests.memory.conftest import Opening
from tests.memory.naive import elf_frames, lime_frames, page_of

Writer = Callable[..., None]
TEXT = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=0\n"


def chunks(frames: dict[int, bytes], sizes: int) -> Iterator[tuple[Pfns, Bytes]]:
    """The frames in ascending order, `sizes` at a time."""
    pfns = sorted(frames)
    for at in range(0, len(pfns), sizes):
        some = pfns[at : at + sizes]
        data = b"".join(frames[pfn] for pfn in some)
        yield np.array(some, dtype=np.int64), np.frombuffer(data, dtype=np.uint8).reshape(-1, PAGE_SIZE)


def written(path: Path, writer: Writer, frames: dict[int, bytes], sizes: int = 3, **options: object) -> bytes:
    """Return the bytes that a writer writes."""
    with replacing(path) as fd:
        writer(chunks(frames, sizes), fd, FrameRanges.of_pfns(sorted(frames)), **options)
    return path.read_bytes()


def raw_frames(data: bytes) -> dict[int, bytes]:
    """Return the pages of raw bytes, by frame."""
    return {at // PAGE_SIZE: data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)}


def notes_of(elf: ELFFile) -> list[tuple[str, bytes]]:
    """Name and description of the notes in the first segment, as pyelftools reads them."""
    first: Any = elf.get_segment(0)
    return [(note.n_name, note.n_descdata) for note in first.iter_notes()]


some_frames = st.sets(st.integers(0, 80), min_size=1, max_size=60).map(lambda pfns: {pfn: page_of(pfn) for pfn in pfns})
with_files = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@with_files
@given(some_frames, st.integers(1, 70), st.booleans())
def test_elf_and_lime_hold_the_frames(tmp_path: Path, frames: dict[int, bytes], sizes: int, noted: bool) -> None:
    """Whatever the gaps and the chunks, naive parsers of both formats find exactly the frames."""
    notes = [vmcoreinfo_note(TEXT)] if noted else []
    assert elf_frames(written(tmp_path / "elf", write_elf, frames, sizes, notes=lambda: notes)) == frames
    assert lime_frames(written(tmp_path / "lime", write_lime, frames, sizes)) == frames


@with_files
@given(some_frames, st.integers(1, 70))
def test_raw_holds_the_frames_at_their_places(tmp_path: Path, frames: dict[int, bytes], sizes: int) -> None:
    """Frame n stands at 4096 n, gaps read as zeroes, the file ends with the last frame."""
    found = raw_frames(written(tmp_path / "raw", write_raw, frames, sizes))
    assert found == {pfn: frames.get(pfn, bytes(PAGE_SIZE)) for pfn in range(max(frames) + 1)}


@pytest.mark.parametrize("writer", [write_raw, write_lime, write_elf])
def test_ranges_may_touch(tmp_path: Path, writer: Writer) -> None:
    """Ranges that follow each other without a gap stay ranges of their own, and no page slips over the border."""
    frames = {pfn: page_of(pfn) for pfn in range(3, 9)}
    with replacing(tmp_path / "file") as fd:
        writer(chunks(frames, 6), fd, FrameRanges(np.array([3, 5]), np.array([2, 4])))
    parse = {write_raw: raw_frames, write_lime: lime_frames, write_elf: elf_frames}[writer]
    found = parse((tmp_path / "file").read_bytes())
    assert {pfn: found[pfn] for pfn in frames} == frames


def test_gaps_of_raw_files_are_holes(tmp_path: Path) -> None:
    """A frame at 64 GiB costs one page of disk, not 64 GiB."""
    with replacing(tmp_path / "raw") as fd:
        write_raw(chunks({1 << 24: page_of(1)}, 1), fd, FrameRanges.of([(1 << 24, 1)]))
    found = os.stat(tmp_path / "raw")
    assert found.st_size == ((1 << 24) + 1) * PAGE_SIZE
    assert found.st_blocks * 512 <= 64 << 10


@pytest.mark.parametrize("writer", [write_raw, write_lime, write_elf])
def test_announced_zero_pages_need_not_come(tmp_path: Path, writer: Writer) -> None:
    """Frames that are listed but do not come, as an image's zero pages do not, read as zeroes; the last one too."""
    ranges = FrameRanges.of([(3, 4), (10, 2)])
    frames = {3: page_of(3), 5: page_of(5)}
    with replacing(tmp_path / "file") as fd:
        writer(chunks(frames, 1), fd, ranges, zero_pages=4)
    parse = {write_raw: raw_frames, write_lime: lime_frames, write_elf: elf_frames}[writer]
    found = parse((tmp_path / "file").read_bytes())
    expected = {pfn: frames.get(pfn, bytes(PAGE_SIZE)) for pfn in (3, 4, 5, 6, 10, 11)}
    assert {pfn: found[pfn] for pfn in expected} == expected


def test_more_ranges_than_e_phnum_can_say(opening: Opening, tmp_path: Path) -> None:
    """65 600 ranges: PN_XNUM and section header 0, read back here, by the naive parser and by pyelftools."""
    pfns = np.arange(0, 2 * 65_600, 2)
    pages = np.zeros((len(pfns), PAGE_SIZE), dtype=np.uint8)
    pages[:, :8] = pfns.astype("<u8").view(np.uint8).reshape(-1, 8)
    with replacing(tmp_path / "elf") as fd:
        write_elf(
            [(pfns, pages)], fd, FrameRanges.of_pfns(pfns), vaddr_base=1 << 63, notes=lambda: [vmcoreinfo_note(TEXT)]
        )
    with (tmp_path / "elf").open("rb") as stream:
        elf = ELFFile(stream)
        assert elf.header.e_phnum == 0xFFFF
        assert elf.num_segments() == len(pfns) + 1
        assert notes_of(elf) == [("VMCOREINFO", TEXT)]
        last = elf.get_segment(len(pfns)).header
        assert (last.p_paddr, last.p_vaddr) == (int(pfns[-1]) * PAGE_SIZE, (1 << 63) + int(pfns[-1]) * PAGE_SIZE)
    dump = opening.dump(open_elf, tmp_path / "elf")
    assert dump.memory.ranges.pfns().tolist() == pfns.tolist()
    asked = pfns[::-7]
    found, present = dump.memory.gather(asked)
    assert present.all()
    assert found[:, :8].copy().view("<u8").reshape(-1).tolist() == asked.tolist()
    assert dump.cr3 == 0x2A10000


def test_pyelftools_reads_the_golden_round_trip(opening: Opening, golden: Golden, tmp_path: Path) -> None:
    """The golden dump, written in one pass with its note found before: pyelftools sees every page and the text."""
    memory = opening.dump(open_elf, golden("ram-6.1-low2m.elf")).memory
    text = find_vmcoreinfo(memory)
    assert text is not None
    with replacing(tmp_path / "core") as fd:
        write_elf(
            chunks_of(memory), fd, memory.ranges, vaddr_base=0xFFFF888000000000, notes=lambda: [vmcoreinfo_note(text)]
        )
    with (tmp_path / "core").open("rb") as stream:
        elf = ELFFile(stream)
        assert (elf.header.e_type, elf.header.e_machine) == ("ET_CORE", "EM_X86_64")
        segments = list(elf.iter_segments())
        assert segments[0].header.p_type == "PT_NOTE"  # crash takes the first header for the notes
        assert notes_of(elf) == [("VMCOREINFO", text)]
        for segment in segments[1:]:
            header = segment.header
            assert header.p_vaddr == header.p_paddr + 0xFFFF888000000000
            assert header.p_offset % PAGE_SIZE == 0
            expected = memory.gather(
                np.arange(header.p_paddr // PAGE_SIZE, (header.p_paddr + header.p_filesz) // PAGE_SIZE)
            )
            assert segment.data() == expected[0].tobytes()


def test_golden_round_trip_through_lime(opening: Opening, golden: Golden, tmp_path: Path) -> None:
    """ELF to LiME and back: the same frames, the same bytes."""
    memory = opening.dump(open_elf, golden("ram-6.1-secretmem.elf")).memory
    with replacing(tmp_path / "lime") as fd:
        write_lime(chunks_of(memory), fd, memory.ranges)
    again = opening.dump(open_lime, tmp_path / "lime").memory
    assert list(again.ranges) == list(memory.ranges)
    for first, pages in memory.blocks():
        assert np.array_equal(again.gather(np.arange(first, first + len(pages)))[0], pages)
    assert find_vmcoreinfo(again) == find_vmcoreinfo(memory)


@pytest.mark.parametrize("writer", [write_raw, write_lime, write_elf])
def test_failures_leave_nothing(tmp_path: Path, writer: Writer) -> None:
    """Frames that were not announced, too few of them, a source that fails halfway: an exception and no file."""
    frames = {pfn: page_of(pfn) for pfn in (3, 4, 9)}

    def failing() -> Iterator[tuple[Pfns, Bytes]]:
        yield from chunks({3: page_of(3)}, 1)
        raise RuntimeError("the source broke")

    def attempt(stream: Iterator[tuple[Pfns, Bytes]], ranges: FrameRanges) -> None:
        with replacing(tmp_path / "out") as fd:
            writer(stream, fd, ranges)

    with pytest.raises(ValueError, match="not announced"):
        attempt(chunks(frames, 2), FrameRanges.of([(3, 2), (10, 1)]))
    with pytest.raises(ValueError, match="not announced"):
        attempt(chunks(frames, 2), FrameRanges.of([]))
    with pytest.raises(ValueError, match="not announced"):
        attempt(chunks({3: page_of(3), 4: page_of(4), 5: page_of(5)}, 3), FrameRanges.of([(3, 2), (9, 1)]))
    with pytest.raises(ValueError, match="expected 4, found 3"):
        attempt(chunks(frames, 2), FrameRanges.of([(3, 2), (9, 2)]))
    with pytest.raises(RuntimeError):
        attempt(failing(), FrameRanges.of([(3, 2)]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [write_raw, write_lime, write_elf])
def test_full_disk_is_the_system_s_error(writer: Writer) -> None:
    """Writing to a device that is always full raises OSError, after any earlier writes."""
    pages = np.ones((1024, PAGE_SIZE), dtype=np.uint8)
    stream = ((np.arange(at, at + 1024), pages) for at in range(0, 16 * 1024, 1024))
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=r"No space left|Invalid argument"):
            writer(stream, fd, FrameRanges.of([(0, 16 * 1024)]))
    finally:
        os.close(fd)


@pytest.mark.parametrize("writer", [write_raw, write_lime, write_elf])
def test_chunks_from_several_threads_in_any_order(tmp_path: Path, writer: Writer) -> None:
    """A feed calls `put` from threads, last chunk first, and uses its arrays again: the file is the same."""
    frames = {pfn: page_of(pfn) for pfn in range(3, 90) if pfn % 7}
    ranges = FrameRanges.of_pfns(sorted(frames))

    def feed(put: Put) -> None:
        def work(piece: tuple[Pfns, Bytes]) -> None:
            scratch = piece[1].copy()
            put(piece[0], scratch)
            scratch[:] = 0xEE

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, reversed(list(chunks(frames, 5)))))

    for name, source in (("in order", chunks(frames, 5)), ("threads", feed)):
        with replacing(tmp_path / name) as fd:
            writer(source, fd, ranges)
    assert (tmp_path / "threads").read_bytes() == (tmp_path / "in order").read_bytes()


@pytest.mark.parametrize(("write", "most"), [(write_lime, "MOST_LIME_RANGES"), (write_elf, "MOST_ELF_HEADERS")])
def test_no_file_is_written_that_the_reader_would_refuse(
    write: Callable[..., None], most: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same limit on both sides: one range more is refused before anything is written."""
    pfns = np.arange(0, 12, 2, dtype=np.int64)
    pages = np.ones((len(pfns), PAGE_SIZE), dtype=np.uint8)
    notes_of_core = 1 if most == "MOST_ELF_HEADERS" else 0
    for limit, fits in ((len(pfns) + notes_of_core, True), (len(pfns) + notes_of_core - 1, False)):
        monkeypatch.setattr(declarations, most, limit)
        path = tmp_path / f"{limit}"
        expected = nullcontext() if fits else pytest.raises(HibernautError, match="6 separate ranges of frames, more")
        with expected, replacing(path) as fd:
            write([(pfns, pages)], fd, FrameRanges.of_pfns(pfns))
        assert path.exists() == fits
        if fits:
            with open_memory(path) as source:
                assert source.memory.ranges.total_pages == len(pfns)


@pytest.mark.parametrize("writer", [write_raw, write_lime, write_elf])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_long_runs_of_zeroes_are_holes_that_read_as_zeroes(
    tmp_path: Path, writer: Writer, runs: list[tuple[int, bool, bool]]
) -> None:
    """Whatever pages are zero, or begin with zeroes only: the file has the bytes of a plain one, in fewer blocks."""
    kinds = [kind for pages, *kind in runs for _ in range(pages)]
    frames = {}
    for pfn, (zero, sparse) in enumerate(kinds, 16):
        page = bytearray(PAGE_SIZE if zero or sparse else page_of(pfn))
        if sparse and not zero:
            page[PAGE_SIZE - 9] = 1  # a page that only a look at all of it tells from a zero page
        frames[pfn] = bytes(page)
    data = written(tmp_path / "out", writer, frames, sizes=1000)
    whole = b"".join(frames[pfn] for pfn in sorted(frames))
    at = data.index(whole) if any(whole) else len(data) - len(whole)
    assert data[at : at + len(whole)] == whole
    zeroes = max((pages for pages, zero, _ in runs if zero), default=0)
    if zeroes >= HOLE_PAGES + 2 and writer is write_raw:
        allocated = (tmp_path / "out").stat().st_blocks * 512
        assert allocated <= len(data) - (zeroes - 2) * PAGE_SIZE
