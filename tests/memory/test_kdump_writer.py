# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump-compressed dumps that are written: read by the tests' own reader, this project's, and other programs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Set
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.memory import kdump_writer
from hibernaut.memory.kdump import open_kdump
from hibernaut.memory.kdump_writer import KDUMP_COMPRESSORS, KdumpCompressor, write_kdump
from hibernaut.memory.ranges import FrameRanges
from hibernaut.volumes.output import replacing
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.memory.conftest import Opening
from tests.memory.naive import PAGE, kdump_frames, page_of
from tests.swsusp import naive
from tests.swsusp.images import PAGES, image_file

TEXT = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=-16777216\n"
SYSTEM_PYTHON = "/usr/bin/python3"


def content(pfn: int) -> bytes:
    """Return a page that names its frame: compressible, random, or all zeroes."""
    return [page_of(pfn), np.random.default_rng(pfn).bytes(PAGE), bytes(PAGE)][pfn % 3]


def written(
    path: Path,
    pfns: list[int],
    *,
    left_out: Set[int] = frozenset(),
    piece: int = 5,
    compressor: KdumpCompressor = "zlib",
    text: bytes | None = TEXT,
) -> dict[int, bytes]:
    """Write a dump of these frames, of which some are zero pages that the source does not store."""
    frames = {pfn: bytes(PAGE) if pfn in left_out else content(pfn) for pfn in pfns}
    stored = [pfn for pfn in pfns if pfn not in left_out]
    chunks = (
        (
            np.array(stored[at : at + piece], dtype=np.int64),
            np.frombuffer(b"".join(frames[pfn] for pfn in stored[at : at + piece]), dtype=np.uint8).reshape(-1, PAGE),
        )
        for at in range(0, len(stored), piece)
    )
    ranges = FrameRanges.of_pfns(np.array(pfns))
    with replacing(path) as fd:
        write_kdump(chunks, fd, ranges, zero_pages=len(left_out), compressor=compressor, vmcoreinfo=lambda: text)
    return frames


@pytest.mark.parametrize("compressor", KDUMP_COMPRESSORS)
@settings(max_examples=20)
@given(pfns=st.sets(st.integers(0, 70_000), min_size=1, max_size=40), data=st.data())
def test_every_page_is_read_back(
    tmp_path: Path, opening: Opening, compressor: KdumpCompressor, pfns: set[int], data: st.DataObject
) -> None:
    """By the tests' reader and by this project's; zero pages without data among them."""
    left_out = data.draw(st.sets(st.sampled_from(sorted(pfns))))
    path = tmp_path / "dump"
    frames = written(path, sorted(pfns), left_out=left_out, compressor=compressor)
    assert kdump_frames(path.read_bytes()) == frames
    dump = opening.dump(open_kdump, path)
    assert (dump.vmcoreinfo, dump.cr3, dump.levels, dump.remarks) == (TEXT, 0x2A10000 - 0x1000000, 4, ())
    assert {
        first + row: one.tobytes() for first, some in dump.memory.blocks() for row, one in enumerate(some)
    } == frames


def test_bitmaps_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges that begin, end and lie in several pieces of a bitmap, and far beyond them."""
    monkeypatch.setattr(kdump_writer, "BITMAP_PIECE", 8)
    path = tmp_path / "dump"
    pfns = [*range(3, 200), *range(260, 262), 1000, 1001, *range(5000, 5140), 300_000]
    frames = written(path, pfns)
    assert kdump_frames(path.read_bytes()) == frames


def test_frames_far_apart(tmp_path: Path, opening: Opening) -> None:
    """The bitmap is a hole but for their bits."""
    path = tmp_path / "dump"
    highest = 1 << 33
    frames = written(path, [1, highest])
    assert path.stat().st_blocks * 512 < 1 << 20
    memory = opening.dump(open_kdump, path).memory
    assert (memory.read(PAGE, PAGE), memory.read(highest * PAGE, PAGE)) == (frames[1], frames[highest])


def test_a_long_text_goes_to_the_end(tmp_path: Path, opening: Opening) -> None:
    """The kernel's has at most a page; another program's may have more."""
    path = tmp_path / "dump"
    text = TEXT + b"LINE=1\n" * 2000
    written(path, [1, 2], text=text)
    assert opening.dump(open_kdump, path).vmcoreinfo == text
    written(path, [1, 2], text=None)
    assert opening.dump(open_kdump, path).vmcoreinfo is None


@pytest.mark.parametrize(("pfns", "words"), [([1, 9], "not announced"), ([2, 1], "not announced"), ([1], "expected 3")])
def test_wrong_chunks_are_refused(tmp_path: Path, pfns: list[int], words: str) -> None:
    """A frame that the ranges do not have, frames out of order, too few of them."""
    chunk = (np.array(pfns, dtype=np.int64), np.ones((len(pfns), PAGE), dtype=np.uint8))
    with pytest.raises(ValueError, match=words), replacing(tmp_path / "dump") as fd:
        write_kdump([chunk], fd, FrameRanges.of([(1, 3)]))
    assert not (tmp_path / "dump").exists()


def test_convert_to_kdump(tmp_path: Path) -> None:
    """Of an image with zero pages: the frames of its raw file; without VMCOREINFO a remark says what will not open."""
    path, raw = image_file(tmp_path), tmp_path / "raw"
    assert not hibernaut("convert", path, raw, "--to", "raw", "--offset", 2).status
    for compressor in KDUMP_COMPRESSORS:
        out = tmp_path / compressor
        result = hibernaut("convert", path, out, "--to", "kdump", "--compressor", compressor, "--offset", 2, "--json")
        found = result.document
        assert (found["format"], found["compressor"], found["vmcoreinfo"]) == ("kdump", compressor, False)
        assert "crash and drgn will not take the file" in result.err
        frames = kdump_frames(out.read_bytes())
        assert sorted(frames) == sorted(PAGES)
        assert all(raw.read_bytes()[pfn * PAGE : (pfn + 1) * PAGE] == page for pfn, page in frames.items())
        assert found["file_bytes"] == out.stat().st_size
        assert out.stat().st_mode & 0o777 == 0o600


def test_a_compressor_is_for_kdump_alone(tmp_path: Path) -> None:
    """Other formats have no compressed pages."""
    path = image_file(tmp_path)
    line = refused("convert", path, tmp_path / "out", "--to", "raw", "--offset", 2, "--compressor", "zlib")
    assert "--to raw has no compressed pages" in line


def test_a_damaged_image_leaves_nothing(tmp_path: Path) -> None:
    """The CRC is known to be wrong only at the end."""
    path = image_file(tmp_path, PAGES, naive.Layout(crc_error=5))
    assert "CRC" in refused("convert", path, tmp_path / "out", "--to", "kdump", status=1)
    assert not (tmp_path / "out").exists()


def golden_dump(golden: Golden, folder: Path, compressor: str) -> Path:
    """Return a real machine's dump."""
    out = folder / compressor
    result = hibernaut(
        "convert", golden("swap-6.12-lz4.img"), out, "--to", "kdump", "--compressor", compressor, "--json"
    )
    assert result.document["vmcoreinfo"] is True
    return out


@pytest.mark.skipif(shutil.which("makedumpfile") is None, reason="makedumpfile, the witness here, is not installed")
def test_makedumpfile_finds_the_kernel_log_in_it(golden: Golden, tmp_path: Path) -> None:
    """By VMCOREINFO, page tables and pages."""
    out, log = golden_dump(golden, tmp_path, "zlib"), tmp_path / "log"
    subprocess.run(["makedumpfile", "--dump-dmesg", out, log], capture_output=True, check=True)
    assert "Linux version 6.12.107" in log.read_text()


def has_crash() -> bool:
    """Tell whether crash is there and runs."""
    command = ["crash", "--version"]
    return bool(shutil.which("crash")) and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.skipif(not has_crash(), reason="crash, the witness here, is not installed")
def test_crash_reads_the_release(golden: Golden, tmp_path: Path) -> None:
    """Without a vmlinux it opens the dump and prints OSRELEASE."""
    out = golden_dump(golden, tmp_path, "lzo")
    done = subprocess.run(["crash", "--osrelease", out], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("6.12.107")


def has_libkdumpfile() -> bool:
    """Tell whether the distribution's Python has libkdumpfile."""
    command = [SYSTEM_PYTHON, "-c", "import kdumpfile"]
    return Path(SYSTEM_PYTHON).exists() and not subprocess.run(command, capture_output=True, check=False).returncode


READ_ALL = """
import hashlib, sys, kdumpfile
dump = kdumpfile.kdumpfile(sys.argv[1])
assert dump.attr["arch.name"] == "x86_64"
pages = hashlib.sha256()
for pfn in map(int, sys.stdin.read().split()):
    pages.update(dump.read(kdumpfile.KDUMP_MACHPHYSADDR, pfn * 4096, 4096))
print(pages.hexdigest())
"""


@pytest.mark.skipif(not has_libkdumpfile(), reason="libkdumpfile (Debian: python3-libkdumpfile) is not installed")
@pytest.mark.parametrize("compressor", ["zlib", "lzo", "zstd", "none"])
def test_libkdumpfile_reads_every_page(tmp_path: Path, compressor: KdumpCompressor) -> None:
    """Its pages are those of the machine."""
    path = tmp_path / "dump"
    frames = written(path, [*range(3, 200), 1000, 70_000], left_out={7, 8}, compressor=compressor)
    command = [SYSTEM_PYTHON, "-c", READ_ALL, str(path)]
    done = subprocess.run(command, input=" ".join(map(str, frames)), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(b"".join(frames.values())).hexdigest()
