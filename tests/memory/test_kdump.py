# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump-compressed dumps, against files put together field by field."""

from __future__ import annotations

import shutil
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.memory.dump import Dump
from hibernaut.memory.dump_layout import vmcoreinfo_note
from hibernaut.memory.elf import open_elf
from hibernaut.memory.kdump import open_kdump
from hibernaut.memory.vmcoreinfo import chunks_of, find_vmcoreinfo
from hibernaut.memory.writers import write_elf
from hibernaut.volumes.output import replacing
from tests.conftest import Golden
from tests.memory.conftest import Opening
from tests.memory.naive import PAGE, compressed, kdump, page_of, snappy
from tests.strategies import damage

TEXT = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=-16777216\n"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 40_000), min_size=1, max_size=12), st.sampled_from([0, 1, 2, 4, 0x20]))
def test_frames_are_those_of_the_bitmap(opening: Opening, pfns: set[int], flags: int) -> None:
    """Every compression gives back the pages whose bits are set, and no others."""
    frames = {pfn: page_of(pfn) for pfn in pfns}
    memory = opening.dump(open_kdump, kdump(frames, flags=flags)).memory
    assert {first + row: page.tobytes() for first, pages in memory.blocks() for row, page in enumerate(pages)} == frames
    asked = sorted({near for pfn in pfns for near in (pfn - 1, pfn, pfn + 1)})
    pages, present = memory.gather(np.array(asked))
    assert present.tolist() == [pfn in frames for pfn in asked]
    assert [page.tobytes() for page in pages] == [frames.get(pfn, bytes(PAGE)) for pfn in asked]


def test_vmcoreinfo_tells_root_and_levels(opening: Opening) -> None:
    """The sub-header names VMCOREINFO's text; a negative phys_base (KASLR moved the kernel down) is subtracted."""
    dump = opening.dump(open_kdump, kdump({5: page_of(5)}, vmcoreinfo=TEXT))
    assert (dump.cr3, dump.levels, dump.vmcoreinfo) == (0x2A10000 - 0x1000000, 4, TEXT)


def test_varieties_that_are_not_read_are_refused(opening: Opening) -> None:
    """One file of several, diskdump: refused with the reason, not halfway through."""
    split = bytearray(kdump({5: page_of(5)}))
    struct.pack_into("<i", split, PAGE + 12, 1)
    assert "--split" in opening.refusal(open_kdump, bytes(split))
    assert "diskdump" in opening.refusal(open_kdump, b"DISKDUMP" + bytes(2 * PAGE))
    assert "magic" in opening.refusal(open_kdump, bytes(2 * PAGE))


def test_damaged_pages_are_corrupt_when_they_are_read(opening: Opening) -> None:
    """Pages that do not decompress, or to a wrong size, raise CorruptImage with their offset; others still read."""
    good = compressed(page_of(6), 1)
    for broken in (good[:20], b"rubbish", compressed(bytes(100), 1), compressed(bytes(1 << 16), 1)):
        memory = opening.dump(open_kdump, kdump({5: b"", 6: b""}, packed=[broken, good])).memory
        with pytest.raises(CorruptImage) as caught:
            memory.page(5)
        assert caught.value.offset == 4 * PAGE + 2 * 24
        page = memory.page(6)
        assert page is not None
        assert page.tobytes() == page_of(6)


@pytest.mark.parametrize(
    "broken",
    [b"\xff", b"\x80\x20", b"\xff\xff\xff\xff\x0f" + bytes(20), snappy(bytes(100)), snappy(bytes(8192))],
)
def test_damaged_snappy_pages_are_corrupt(opening: Opening, broken: bytes) -> None:
    """Cut, of another length than a page, or of 4 GiB by their own account."""
    good = compressed(page_of(6), 4)
    memory = opening.dump(open_kdump, kdump({5: b"", 6: b""}, flags=4, packed=[broken, good])).memory
    with pytest.raises(CorruptImage, match="damaged page"):
        memory.page(5)
    page = memory.page(6)
    assert page is not None
    assert page.tobytes() == page_of(6)


def test_pages_compressed_by_the_library(opening: Opening) -> None:
    """With copies, which the tests' own packer does not make."""
    packed = [bytes(cramjam.snappy.compress_raw(page_of(pfn))) for pfn in (5, 6)]
    memory = opening.dump(open_kdump, kdump({5: b"", 6: b""}, flags=4, packed=packed)).memory
    assert memory.read(5 * PAGE, 2 * PAGE) == page_of(5) + page_of(6)


def test_no_thread_uses_the_decompressor_of_another(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zstd decompressor holds state while it works: three threads at once have three of them."""
    real = zstandard.ZstdDecompressor
    users: list[set[int]] = []

    class Watched:
        def __init__(self, **options: Any) -> None:
            self._real = real(**options)
            self._users: set[int] = set()
            users.append(self._users)

        def decompress(self, data: bytes, **options: Any) -> bytes:
            self._users.add(threading.get_ident())
            return self._real.decompress(data, **options)

    memory = opening.dump(open_kdump, kdump({pfn: page_of(pfn) for pfn in range(8)}, flags=0x20)).memory
    monkeypatch.setattr("zstandard.ZstdDecompressor", Watched)
    together = threading.Barrier(3, timeout=60)

    def read(_number: int) -> None:
        together.wait()  # all three are there: none has the identifier of one that ended
        for pfn in range(8):
            memory.page(pfn)
        together.wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(read, range(3)))
    assert [len(threads) for threads in users] == [1, 1, 1]


def without(data: bytes, rows: range) -> bytes:
    """Return a dump of frames below 4096 with some page descriptors zeroed, as makedumpfile leaves them."""
    broken = bytearray(data)
    at = 4 * PAGE + 24 * rows.start
    broken[at : at + 24 * len(rows)] = bytes(24 * len(rows))
    return bytes(broken)


@pytest.mark.parametrize(("status", "how"), [(9, "were not written"), (1, "are not in the file")])
def test_pages_that_were_not_written_do_not_exist(opening: Opening, status: int, how: str) -> None:
    """Descriptors of zeroes, at the end and between others: the rest is read, and the number is in a remark."""
    frames = {pfn: page_of(pfn) for pfn in (*range(8), *range(16, 24), 40)}
    whole = bytearray(kdump(frames))
    struct.pack_into("<I", whole, 424, status)
    for rows, lost in (
        (range(12, 17), [20, 21, 22, 23, 40]),
        (range(6, 10), [6, 7, 16, 17]),
        (range(8, 16), range(16, 24)),
    ):
        dump = opening.dump(open_kdump, without(bytes(whole), rows))
        kept = {pfn: page for pfn, page in frames.items() if pfn not in lost}
        found = {first + row: page.tobytes() for first, pages in dump.memory.blocks() for row, page in enumerate(pages)}
        assert found == kept
        assert dump.memory.ranges.pfns().tolist() == sorted(kept)
        assert dump.memory.page(lost[0]) is None
        assert dump.remarks == (f"the dump is incomplete: {len(rows)} of 17 pages {how}",)
    assert opening.dump(open_kdump, bytes(whole)).remarks == (
        ("the dump is marked as incomplete, but no page of those that it announces is missing",) if status & 8 else ()
    )


def test_a_dump_cut_among_its_pages_is_read_as_far_as_it_goes(opening: Opening) -> None:
    """A page whose data runs past the end does not exist."""
    frames = {pfn: page_of(pfn) for pfn in range(6)}
    whole = kdump(frames, flags=0)
    dump = opening.dump(open_kdump, whole[: -2 * PAGE - 1])
    assert dump.memory.ranges.pfns().tolist() == [0, 1, 2]
    assert dump.remarks == ("the dump is incomplete: 3 of 6 pages are not in the file",)


def test_headers_that_claim_too_much(opening: Opening) -> None:
    """Bitmaps or descriptors beyond the end of the file are errors with an offset, and allocate nothing."""
    for at, value in ((436, 1 << 30), (432, 1 << 31)):
        data = bytearray(kdump({5: page_of(5)}))
        struct.pack_into("<I", data, at, value)
        with pytest.raises(FormatError, match="past the end") as caught:
            opening(open_kdump, bytes(data))
        assert caught.value.offset is not None
    full = bytearray(kdump({5: page_of(5)}))
    full[3 * PAGE : 4 * PAGE] = b"\xff" * PAGE
    struct.pack_into("<Q", full, PAGE + 96, 1 << 40)
    with pytest.raises(FormatError, match="more pages"):
        opening(open_kdump, bytes(full))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_raises_nothing_else(opening: Opening, data: st.DataObject) -> None:
    """Cut and overwritten files are read, refused, or a HibernautError, on opening or on reading."""
    flags = data.draw(st.sampled_from([0, 1, 2, 4, 0x20]))
    whole = kdump({pfn: page_of(pfn) for pfn in (1, 2, 3, 900)}, flags=flags, vmcoreinfo=TEXT)
    broken = data.draw(damage(whole, near_bytes=2 * PAGE + 96))
    if not broken:
        return
    try:
        answer = opening(open_kdump, broken)
        if isinstance(answer, Dump):
            assert sum(len(pages) for _, pages in answer.memory.blocks()) == answer.memory.ranges.total_pages
    except HibernautError:
        return


@pytest.mark.skipif(shutil.which("makedumpfile") is None, reason="makedumpfile, the witness here, is not installed")
@pytest.mark.parametrize("options", [["-c"], ["-l"], ["-F", "-c"]])
def test_makedumpfile_and_this_reader_agree(
    opening: Opening, golden: Golden, tmp_path: Path, options: list[str]
) -> None:
    """Makedumpfile accepts an ELF core written here, and what it makes of it has the same pages when read here."""
    memory = opening.dump(open_elf, golden("ram-6.1-lzo.elf")).memory
    text = find_vmcoreinfo(memory)
    assert text is not None
    with replacing(tmp_path / "core") as fd:
        write_elf(
            chunks_of(memory), fd, memory.ranges, vaddr_base=0xFFFF888000000000, notes=lambda: [vmcoreinfo_note(text)]
        )
    made = tmp_path / "made"
    command = ["makedumpfile", *options, "-d", "0", str(tmp_path / "core")]
    if "-F" in options:
        with made.open("wb") as out:
            subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=True)
    else:
        subprocess.run([*command, str(made)], capture_output=True, check=True)
    dump = opening.dump(open_kdump, made)
    assert (dump.vmcoreinfo, dump.cr3, dump.levels) == (text, 0x2A10000, 4)
    assert dump.memory.ranges.total_pages > 65_000
    for first, pages in dump.memory.blocks():
        assert np.array_equal(memory.gather(np.arange(first, first + len(pages)))[0], pages)
