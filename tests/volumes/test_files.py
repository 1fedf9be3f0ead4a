# SPDX-License-Identifier: GPL-2.0-or-later
"""Input files: plain, compressed, flattened, damaged, and paths that are not regular files."""

from __future__ import annotations

import os
import resource
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.volumes import compressed
from hibernaut.volumes.files import open_plain
from tests.conftest import Golden
from tests.memory.naive import flattened, packed_file, page_of

DATA = b"".join(page_of(pfn) if pfn % 3 else bytes(4096) for pfn in range(600)) + b"tail"
HOWS = ("zstd", "gzip", "xz", "flattened")


def packed(how: str, data: bytes = DATA) -> bytes:
    """Return data packed by one of `HOWS`."""
    return flattened(data, 70_000) if how == "flattened" else packed_file(data, how)


@pytest.mark.parametrize("how", HOWS)
def test_packed_file_reads_as_its_contents(tmp_path: Path, how: str) -> None:
    """A file of two frames of each compression, or flattened, reads as the plain bytes, and leaves no file behind."""
    path = tmp_path / "memory"
    path.write_bytes(packed(how))
    with open_plain(path) as plain:
        assert (plain.size_bytes, plain.compression, plain.name) == (len(DATA), how, str(path))
        assert plain.pread(0, len(DATA)) == DATA == plain.map().tobytes()
        assert plain.pread(4090, 20) == DATA[4090:4110]
        assert os.fstat(plain.fileno()).st_nlink == 0
    assert list(tmp_path.iterdir()) == [path]


def test_zeroes_become_holes(tmp_path: Path) -> None:
    """64 MiB of zeroes with one page of data take no more than that page's blocks once unpacked."""
    data = bytes(32 << 20) + page_of(1) + bytes(32 << 20)
    (tmp_path / "packed").write_bytes(packed("zstd", data))
    with open_plain(tmp_path / "packed") as plain:
        assert plain.size_bytes == len(data)
        assert os.fstat(plain.fileno()).st_blocks * 512 <= 64 << 10
        assert plain.pread(32 << 20, 4096) == page_of(1)


@pytest.mark.parametrize("how", HOWS)
def test_truncated_packed_file_is_a_format_error(tmp_path: Path, how: str) -> None:
    """Cut anywhere after its magic, a packed file is refused with an offset, except between two whole frames."""
    whole = packed(how)
    path = tmp_path / "cut"
    between = [] if how == "flattened" else [len(packed_file(DATA[: len(DATA) // 2] * 2, how)) // 2]
    for cut in [20, 100, len(whole) // 3, len(whole) - 200, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError) as caught:
            open_plain(path)
        assert caught.value.source == str(path)
        assert caught.value.offset is not None
    for cut in between:
        path.write_bytes(whole[:cut])
        with open_plain(path) as plain:
            assert plain.pread(0, len(DATA)) == DATA[: len(DATA) // 2]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HOWS), st.data())
def test_damage_is_a_format_error_or_harmless(tmp_path: Path, how: str, data: st.DataObject) -> None:
    """A byte changed anywhere in a packed file: refused as a FormatError, or opened (unchecked header bits)."""
    broken = bytearray(packed(how, DATA[:70_000]))
    at = data.draw(st.integers(16, len(broken) - 1))
    broken[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged"
    path.write_bytes(broken)
    # OSError: a flattened record for a place that this file system cannot have.
    with suppress(FormatError, *([OSError] if how == "flattened" else [])):
        open_plain(path).close()


def test_flattened_records_that_claim_too_much(tmp_path: Path) -> None:
    """A record of more bytes than the file has, or for a place no dump has, is an error at once."""
    good = flattened(DATA[:4096], 4096)
    for place, size_bytes in ((0, 1 << 50), (1 << 60, 10), (-5, 10), (0, -2)):
        (tmp_path / "flat").write_bytes(good[:4096] + struct.pack(">qq", place, size_bytes) + good[4112:])
        with pytest.raises(FormatError, match="impossible record") as caught:
            open_plain(tmp_path / "flat")
        assert caught.value.offset == 4096


def test_padding_after_compressed_data(tmp_path: Path) -> None:
    """Zero bytes after gzip or xz data are padding (they come from tapes and block devices); other bytes are damage."""
    for how in ("gzip", "xz"):
        (tmp_path / how).write_bytes(packed(how) + bytes(4096))
        with open_plain(tmp_path / how) as plain:
            assert plain.pread(0, len(DATA)) == DATA
    for how in ("gzip", "xz", "zstd"):
        (tmp_path / how).write_bytes(packed(how) + b"something else")
        with pytest.raises(FormatError):
            open_plain(tmp_path / how)


def test_paths_without_bytes_are_refused(tmp_path: Path) -> None:
    """A directory, a pipe and empty files, compressed or not, have our error; a missing file has the system's."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "empty.zst").write_bytes(packed("zstd", b""))
    for name, what in (
        (".", "is a directory"),
        ("pipe", "neither a regular file nor a block device"),
        ("empty", "is empty"),
        ("empty.zst", "is empty when unpacked"),
    ):
        with pytest.raises(FormatError, match=what):
            open_plain(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "missing")


def test_reads_stop_at_the_end(tmp_path: Path) -> None:
    """A read beyond the end gives what there is, however large or far away it was asked to be."""
    (tmp_path / "small").write_bytes(b"0123456789")
    with open_plain(tmp_path / "small") as plain:
        assert plain.pread(8, 1 << 62) == b"89"
        assert plain.pread(10, 1) == plain.pread(1 << 63, 1 << 63) == b""


def test_mapping_outlives_the_file_and_is_read_only(tmp_path: Path) -> None:
    """Arrays on a mapping stay valid after release and close, and cannot be written."""
    (tmp_path / "memory").write_bytes(DATA)
    plain = open_plain(tmp_path / "memory")
    mapped = plain.map()
    assert not mapped.flags.writeable
    plain.release(0, plain.size_bytes)
    plain.release(5000, 100)
    plain.close()
    assert mapped.tobytes() == DATA


def test_expanding_data_needs_little_memory(tmp_path: Path) -> None:
    """A few hundred KiB that unpack to 2 GiB of zeroes are unpacked with less than 300 MiB of memory."""
    import zstandard

    packer = zstandard.ZstdCompressor().compressobj()
    zeroes = bytes(16 << 20)
    with (tmp_path / "bomb").open("wb") as out:
        for _ in range(128):
            out.write(packer.compress(zeroes))
        out.write(packer.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_plain(tmp_path / "bomb") as plain:
        assert plain.size_bytes == 2 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_golden_unpacks_to_the_same_bytes(golden: Golden) -> None:
    """The golden RAM dump reads the same from its zstd file as unpacked by other code."""
    name = "ram-6.1-lzo.elf"
    with open_plain(golden.packed(name)) as packed_one, open_plain(golden(name)) as plain:
        assert packed_one.size_bytes == plain.size_bytes
        assert np.array_equal(packed_one.map(), plain.map())


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts zeroes, too; another one is given in the environment, in bytes or with a letter."""
    path = tmp_path / "zeroes.zst"
    path.write_bytes(zstandard.compress(bytes(5 << 20)))
    for limit, fits in (("5M", True), ("4M", False), (str(5 << 20), True), (str((5 << 20) - 1), False), ("", True)):
        monkeypatch.setenv("HIBERNAUT_UNPACK_LIMIT", limit)
        if fits:
            open_plain(path).close()
            continue
        with pytest.raises(FormatError, match=r"unpacks to more than \d+ bytes.*set HIBERNAUT_UNPACK_LIMIT"):
            open_plain(path)
    monkeypatch.setenv("HIBERNAUT_UNPACK_LIMIT", "much")
    with pytest.raises(FormatError, match="HIBERNAUT_UNPACK_LIMIT is 'much'; expected bytes"):
        open_plain(path)


def test_unpacking_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space stays free: bytes that are not zero are counted against it, zeroes are holes."""
    monkeypatch.setattr(compressed, "_room_bytes", lambda _fd: 1 << 20)
    path = tmp_path / "data.zst"
    path.write_bytes(zstandard.compress(bytes(5 << 20) + b"x" * (1 << 20)))
    open_plain(path).close()
    path.write_bytes(zstandard.compress(bytes(5 << 20) + b"x" * ((1 << 20) + 4096)))
    with pytest.raises(FormatError, match=r"unpacks to more than there is room for in .*set TMPDIR"):
        open_plain(path)


def test_the_room_leaves_something_free(tmp_path: Path) -> None:
    """A gigabyte, or a quarter of what is free: never all of it."""
    with (tmp_path / "file").open("wb") as file:
        free = shutil.disk_usage(tmp_path).free
        assert 0.7 * free <= compressed._room_bytes(file.fileno()) < free
