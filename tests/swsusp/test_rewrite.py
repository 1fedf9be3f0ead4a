# SPDX-License-Identifier: GPL-2.0-or-later
"""Images written again: into a copy, and in place, where a crash at any instant must leave an image or none."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.swsusp import open_image, rewrite_image
from hibernaut.swsusp import rewrite as rewriting
from hibernaut.swsusp.codecs import COMPRESSORS, CompressorName
from tests.conftest import Golden
from tests.strategies import image_layouts, saved_pages
from tests.swsusp import naive

Pages = dict[int, bytes | None]


def plain(pages: Pages) -> dict[int, bytes]:
    return {pfn: page or bytes(4096) for pfn, page in pages.items()}


def changed_by(pages: Pages, writes: list[tuple[int, bytes]]) -> dict[int, bytes]:
    """What memory holds after the writes, one byte at a time."""
    memory = {pfn: bytearray(page) for pfn, page in plain(pages).items()}
    for paddr, data in writes:
        for at, byte in enumerate(data, start=paddr):
            memory[at >> 12][at & 4095] = byte
    return {pfn: bytes(page) for pfn, page in memory.items()}


@st.composite
def writes_into(draw: st.DrawFn, pages: Pages) -> list[tuple[int, bytes]]:
    """Writes that stay in listed frames; they overlap, cross into the next frame, and some are zeroes."""
    writes = []
    for _ in range(draw(st.integers(0, 4))):
        pfn = draw(st.sampled_from(sorted(pages)))
        at = pfn * 4096 + draw(st.integers(0, 4095))
        room = (pfn + (2 if pfn + 1 in pages else 1)) * 4096 - at
        size = draw(st.sampled_from([1, 8, 4096]))
        data = draw(st.binary(min_size=1, max_size=8)) * size if draw(st.booleans()) else bytes(8 * size)
        writes.append((at, data[:room]))
    if draw(st.booleans()):
        writes.append((draw(st.sampled_from(sorted(pages))) * 4096, bytes(4096)))
    return writes


@given(data=st.data(), pages=saved_pages(), layout=image_layouts(), in_place=st.booleans())
def test_only_what_was_written_changes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, pages: Pages, layout: naive.Layout, in_place: bool
) -> None:
    """Written bytes are there, the later write wins, all others are as they were: says the naive reader, of both ways.

    No block but the old image's changes; with elision exactly the pages that are zero now have no data page.
    """
    compressor: CompressorName | None = data.draw(st.none() | st.sampled_from(COMPRESSORS))
    zero_pages = data.draw(st.none() | st.booleans())
    writes = data.draw(writes_into(pages))
    path = tmp_path_factory.mktemp("rewrite") / "image"
    old = naive.build(pages, layout)
    path.write_bytes(old)
    out = path if in_place else path.with_name("out")
    with open_image(path, offset=layout.header_block) as image:
        try:
            written = rewrite_image(
                image, None if in_place else out, writes=writes, compressor=compressor, zero_pages=zero_pages
            )
        except HibernautError as error:
            told = str(error)
            written = None
    if written is None:
        assert "blocks of 4096 bytes are missing" in told
        assert path.read_bytes() == old
        assert sorted(path.parent.iterdir()) == [path]
        return
    new = out.read_bytes()
    assert in_place or path.read_bytes() == old
    found, used = naive.parse(new, layout.header_block)
    _, old_used = naive.parse(old, layout.header_block)
    assert plain(found) == changed_by(pages, writes)
    assert written.blocks == len(used)
    assert used <= old_used
    for block in range(len(old) // 4096):
        if block not in old_used and block != layout.header_block:
            assert new[block * 4096 : block * 4096 + 4096] == old[block * 4096 : block * 4096 + 4096]
    elided = zero_pages if zero_pages is not None else None in pages.values()
    zeroes = {pfn for pfn, page in changed_by(pages, writes).items() if not any(page)}
    assert {pfn for pfn, page in found.items() if page is None} == (zeroes if elided else set())
    flags = struct.unpack_from("<I", new, layout.header_block * 4096 + 4072)[0]
    assert flags == {"none": 2, "lzo": 4, "lz4": 20}[compressor or layout.compressor]


PAGES: Pages = {pfn: None if pfn % 7 == 3 else np.random.default_rng(pfn).bytes(4096) for pfn in range(8, 40)}
LAYOUT = naive.Layout(compressor="none", shuffle_seed=7, header_block=2)
WRITES = [(11 * 4096 + 5, b"changed"), (25 * 4096, b"\x55" * 4096)]


def image_file(folder: Path, pages: Pages = PAGES, layout: naive.Layout = LAYOUT) -> Path:
    path = folder / "image"
    path.write_bytes(naive.build(pages, layout))
    return path


def test_a_write_outside_the_list_names_the_first_such_frame(tmp_path: Path) -> None:
    """A write that begins well and runs out of the listed frames is refused as a whole, and nothing is written."""
    path = image_file(tmp_path, {5: b"a" * 4096, 6: b"b" * 4096, 8: b"c" * 4096}, naive.Layout())
    before = path.read_bytes()
    cases = [
        (6 * 4096 + 4090, 7, 7),
        (4 * 4096, 1, 4),
        (5 * 4096, 5 * 4096, 7),
        (9 * 4096, 1, 9),
        ((1 << 64) - 1, 9, (1 << 52) - 1),
    ]
    with open_image(path) as image:
        for paddr, size, pfn in cases:
            for out in (None, tmp_path / "out"):
                with pytest.raises(FormatError, match=f"frame {pfn:#x} is not in the image"):
                    rewrite_image(image, out, writes=[(5 * 4096, b"x"), (paddr, bytes(size))])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("in_place", [False, True])
def test_damage_is_not_hidden_by_a_new_crc(tmp_path: Path, in_place: bool) -> None:
    """An image whose CRC is wrong is refused and stays as it is."""
    path = image_file(tmp_path, PAGES, naive.Layout(crc_error=1))
    before = path.read_bytes()
    with open_image(path) as image, pytest.raises(CorruptImage, match="CRC"):
        rewrite_image(image, None if in_place else tmp_path / "out")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_golden_images_fit_or_not_as_counted(golden: Golden, tmp_path: Path) -> None:
    """6.1's LZO image has too few blocks for LZ4 or no compression; the number missing is that of a naive sum."""
    with open_image(golden("swap-6.1-lzo.img")) as image:
        have = len(image.swap_map.blocks)
        entries = image.info.pages  # not compressed, every page has an entry of its own
        needed = entries + -(-entries // 511)
        with pytest.raises(HibernautError, match=f"{needed - have} blocks of 4096 bytes are missing"):
            rewrite_image(image, tmp_path / "none", compressor="none")
        with pytest.raises(HibernautError, match="blocks of 4096 bytes are missing"):
            rewrite_image(image, tmp_path / "lz4", compressor="lz4")
        rewrite_image(image, tmp_path / "lzo", zero_pages=True)
    assert [path.name for path in tmp_path.iterdir()] == ["lzo"]


@pytest.mark.parametrize(
    ("name", "compressor"), [("swap-6.1-lzo.img", "lzo"), ("swap-6.12-lz4.img", "lzo"), ("swap-6.12-lz4.img", "lz4"),
                             ("swap-6.1-low2m.img", "none"), ("swap-6.1-low2m.img", "lz4")]
)  # fmt: skip
def test_real_images_written_again_with_a_change(
    golden: Golden, tmp_path: Path, name: str, compressor: CompressorName
) -> None:
    """The naive reader sees every page of the kernel's image but for the bytes written, across two frames."""
    with open_image(golden(name)) as image:
        pair = next(pfn for pfn in image.pfns.tolist() if pfn + 1 in image.pfns)
        writes = [(pair * 4096 + 4090, b"0123456789ab"), (int(image.pfns[-1]) * 4096, b"\xee" * 4096)]
        rewrite_image(image, tmp_path / "out", writes=writes, compressor=compressor)
    old, _ = naive.parse(golden(name).read_bytes())
    new, _ = naive.parse((tmp_path / "out").read_bytes())
    assert plain(new) == changed_by(old, writes)


# --- in place: what a crash leaves -------------------------------------------------------------------------------

Operation = tuple[int, bytes] | None
"""A write (where, what) or, None, a sync."""


@dataclass
class Recorder:
    """Notes every write and sync of one file; can fail after so many."""

    path: Path
    fail_after: int | None = None
    operations: list[Operation] = field(default_factory=list)

    def note(self, fd: int, operation: Operation) -> None:
        if os.path.samestat(os.fstat(fd), self.path.stat()):
            if self.fail_after == len(self.operations):
                raise OSError(5, os.strerror(5))
            self.operations.append(operation)

    @contextmanager
    def watching(self) -> Iterator[None]:
        pwrite, pwritev, fsync = os.pwrite, os.pwritev, os.fsync

        def noted_pwrite(fd: int, data: bytes, offset: int) -> int:
            self.note(fd, (offset, bytes(data)))
            return pwrite(fd, data, offset)

        def noted_pwritev(fd: int, parts: list[bytes], offset: int) -> int:
            self.note(fd, (offset, b"".join(parts)))
            return pwritev(fd, parts, offset)

        def noted_fsync(fd: int) -> None:
            self.note(fd, None)
            fsync(fd)

        with (
            mock.patch.object(os, "pwrite", noted_pwrite),
            mock.patch.object(os, "pwritev", noted_pwritev),
            mock.patch.object(os, "fsync", noted_fsync),
            mock.patch.object(rewriting, "PIECE_BYTES", 4096),  # as many writes as there are blocks
        ):
            yield


def recorded(path: Path) -> list[Operation]:
    recorder = Recorder(path)
    with open_image(path, offset=LAYOUT.header_block) as image, recorder.watching():
        rewrite_image(image, writes=WRITES)
    return recorder.operations


def state_of(device: bytes) -> str:
    """What a kernel would find: none, old, new, or something that it would accept and that is neither."""
    at = LAYOUT.header_block * 4096
    if device[at + 4086 : at + 4096] != b"S1SUSPEND\0":
        assert device[at + 4086 : at + 4096] == b"SWAPSPACE2"
        return "none"
    try:
        found = plain(naive.parse(device, LAYOUT.header_block)[0])
    except Exception as error:  # whatever the naive reader stumbles over
        return f"half: {error!r}"
    if found == plain(PAGES):
        return "old"
    return "new" if found == changed_by(PAGES, WRITES) else "half: neither the old pages nor the new ones"


def after(device: bytes, operations: list[Operation]) -> bytes:
    changed = bytearray(device)
    for operation in operations:
        if operation is not None:
            at, data = operation
            changed[at : at + len(data)] = data
    return bytes(changed)


def crashed(device: bytes, operations: list[Operation], stop: int, lost: Callable[[int], bool]) -> bytes:
    """The disk after a loss of power: what was synced is there, of the rest each sector is or is not."""
    done = operations[:stop]
    synced = max((number + 1 for number, operation in enumerate(done) if operation is None), default=0)
    disk = bytearray(after(device, done[:synced]))
    sector = 0
    for operation in done[synced:]:
        assert operation is not None
        at, data = operation
        for start in range(0, len(data), 512):
            if not lost(sector):
                disk[at + start : at + start + 512] = data[start : start + 512]
            sector += 1
    return bytes(disk)


def test_a_process_that_dies_leaves_old_none_or_new(tmp_path: Path) -> None:
    """After each single write or sync, in order: first the old image, then none, then the new one."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    operations = recorded(path)
    states = [state_of(after(device, operations[:stop])) for stop in range(len(operations) + 1)]
    assert [state for number, state in enumerate(states) if number == 0 or state != states[number - 1]] == [
        "old",
        "none",
        "new",
    ]
    assert state_of(path.read_bytes()) == "new"
    assert len(operations) > 30


def test_an_error_at_any_operation_leaves_old_or_none(tmp_path: Path) -> None:
    """The disk fails at the n-th write or sync, for every n: the error says so, the area holds no half image."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    count = len(recorded(path))
    for stop in range(count):
        path.write_bytes(device)
        recorder = Recorder(path, fail_after=stop)
        with (
            open_image(path, offset=LAYOUT.header_block) as image,
            recorder.watching(),
            pytest.raises((HibernautError, OSError)) as caught,
        ):
            rewrite_image(image, writes=WRITES)
        state = state_of(path.read_bytes())
        assert state == ("old" if stop == 0 else "new" if stop == count - 1 else "none"), stop
        told = "the area holds no image now" if stop < count - 2 else "the area holds the new image or none now"
        assert stop == 0 or told in str(caught.value)


@given(data=st.data())
def test_a_loss_of_power_leaves_old_none_or_new(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever subset of the sectors since the last sync reached the disk."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    operations = recorded(path)
    stop = data.draw(st.integers(0, len(operations)))
    seed, share = data.draw(st.integers(0, 1 << 30)), data.draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    luck = np.random.default_rng(seed).random(100_000) < share
    assert state_of(crashed(device, operations, stop, lambda sector: bool(luck[sector]))) in ("old", "none", "new")


def header_first(operations: list[Operation]) -> list[Operation]:
    """The new header, synced, and then the blocks."""
    return [*operations[:2], *operations[-2:], *operations[2:-2]]


def never_given_up(operations: list[Operation]) -> list[Operation]:
    """The old header stays valid while its blocks are overwritten."""
    return operations[2:]


def no_sync_before_the_header(operations: list[Operation]) -> list[Operation]:
    return [*operations[:-3], *operations[-2:]]


def no_sync_after_giving_up(operations: list[Operation]) -> list[Operation]:
    return [operations[0], *operations[2:]]


@pytest.mark.parametrize("wrong", [header_first, never_given_up, no_sync_before_the_header, no_sync_after_giving_up])
def test_wrong_orders_are_caught(tmp_path: Path, wrong: Callable[[list[Operation]], list[Operation]]) -> None:
    """The crash model finds a half image in each order that lacks one of the four steps."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    operations = recorded(path)
    assert operations[1] is None
    assert operations[-1] is None
    assert operations[-3] is None
    luck = np.random.default_rng(1).random(100_000) < 0.5
    broken = wrong(operations)
    states = [
        state_of(crashed(device, broken, stop, lost))
        for stop in range(len(broken) + 1)
        for lost in (
            lambda _sector: False,
            lambda _sector: True,
            lambda sector: bool(luck[sector]),
            lambda sector: sector < 8,
        )
    ]
    assert any(state.startswith("half") for state in states)


def test_the_real_code_without_its_second_step_is_caught(tmp_path: Path) -> None:
    """The library itself, made to leave the old signature where it is."""
    path = image_file(tmp_path)
    device = path.read_bytes()
    with mock.patch("hibernaut.swsusp.header.SwapHeader.without_image", lambda header: header):
        operations = recorded(path)
    states = {state_of(after(device, operations[:stop])) for stop in range(len(operations) + 1)}
    assert any(state.startswith("half") for state in states)


# --- in place: what is refused -----------------------------------------------------------------------------------


def test_an_area_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Active swap by /proc/swaps (names with blanks are escaped there), locks of other programs and of QEMU's kind."""
    import fcntl

    folder = tmp_path / "a folder"
    folder.mkdir()
    path = image_file(folder)
    before = path.read_bytes()

    def refuse(match: str) -> None:
        with open_image(path, offset=LAYOUT.header_block) as image, pytest.raises(HibernautError, match=match):
            rewrite_image(image)
        assert path.read_bytes() == before

    swaps = tmp_path / "swaps"
    head = "Filename\tType\tSize\tUsed\tPriority\n/dev/nonexistent partition 1 0 -2\n"
    swaps.write_text(head + str(path).replace(" ", "\\040") + "\tfile\t1 0 -3\n")
    with monkeypatch.context() as patched:
        patched.setattr(rewriting, "SWAPS", swaps)
        refuse("swapping to it")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        refuse("locked")
    with path.open("rb") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0))
        refuse("locked")
    with open_image(path, offset=LAYOUT.header_block) as image:
        monkeypatch.setattr(rewriting, "SWAPS", tmp_path / "missing")
        rewrite_image(image, writes=WRITES)
    assert path.read_bytes() != before


def test_a_compressed_or_changed_file_is_refused(tmp_path: Path) -> None:
    """Only plain bytes can be written in place; a file that is not the one that was read is left alone."""
    import gzip

    path = image_file(tmp_path)
    packed = tmp_path / "image.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with open_image(packed, offset=LAYOUT.header_block) as image, pytest.raises(FormatError, match="gzip"):
        rewrite_image(image)
    with open_image(path, offset=LAYOUT.header_block) as image:
        other = tmp_path / "other"
        other.write_bytes(b"precious")
        other.rename(path)
        with pytest.raises(CorruptImage, match="another file"):
            rewrite_image(image)
    assert path.read_bytes() == b"precious"
    device = bytearray(naive.build(PAGES, LAYOUT))
    path.write_bytes(device)
    with open_image(path, offset=LAYOUT.header_block) as image:
        device[LAYOUT.header_block * 4096 + 4086 : LAYOUT.header_block * 4096 + 4096] = b"SWAPSPACE2"
        path.write_bytes(device)
        with pytest.raises(CorruptImage, match="header was changed"):
            rewrite_image(image)
    assert path.read_bytes() == device


def test_no_room_for_the_new_image_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file cannot grow: nothing in the area has been touched by then."""
    path = image_file(tmp_path)
    before = path.read_bytes()

    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def fileno(self) -> int:
            return os.open("/dev/full", os.O_RDWR)

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with open_image(path, offset=LAYOUT.header_block) as image, pytest.raises(OSError, match="No space"):
        rewrite_image(image)
    assert path.read_bytes() == before


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A block device, and the file behind it; a skip where the system gives none."""
    path = image_file(tmp_path)
    if os.geteuid() != 0 or not shutil.which("losetup"):
        pytest.skip("needs root and losetup(8)")
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device, path
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_device(loop_device: tuple[Path, Path]) -> None:
    """Written in place; refused while somebody else has claimed it, as mount(8) and swapon(8) do."""
    device, path = loop_device
    before = path.read_bytes()
    claim = os.open(device, os.O_RDONLY | os.O_EXCL)
    with open_image(device, offset=LAYOUT.header_block) as image:
        with pytest.raises(HibernautError, match="in use"):
            rewrite_image(image, writes=WRITES)
        os.close(claim)
        assert path.read_bytes() == before
        rewrite_image(image, writes=WRITES)
    assert state_of(path.read_bytes()) == "new"
