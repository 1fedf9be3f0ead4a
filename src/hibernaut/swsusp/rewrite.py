# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewriting an image into its own blocks, with changed memory: in a copy of its area, or in the area itself.

In place, no rename makes the new image appear at once; the order of writes does. At any instant the area holds the old
image, none, or the complete new one.

1. The complete new image is made in a temporary file, and everything that can fail has failed by then.
2. The header block gets its swap signature back, as a resuming kernel does, and is synced: no image.
3. The blocks are written and synced.
4. The header block of the new image is written and synced.

Steps 2 and 4 change only the last 40 bytes of the header block, within one sector, which disks write atomically.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage, FormatError, HibernautError
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.swsusp.area import contiguous_runs
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.image import Image, Progress
from hibernaut.swsusp.uswsusp import USWSUSP
from hibernaut.swsusp.writer import ExistingArea, WrittenImage, spool_image, write_image
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.output import Writeback, allocate, write_all

__all__ = ["claimed", "refuse_changed", "refuse_unlisted", "rewrite_image"]

SWAPS = Path("/proc/swaps")
PIECE_BYTES = 4 << 20


def rewrite_image(
    image: Image,
    out: str | os.PathLike[str] | None = None,
    *,
    writes: Sequence[tuple[int, bytes]] = (),
    compressor: CompressorName | None = None,
    zero_pages: bool | None = None,
    progress: Progress | None = None,
) -> WrittenImage:
    """Rewrite an image into the blocks that it has.

    Args:
        image: the image; first, its data is read to the end and its CRC checked.
        out: file to make, a copy of the image's file except for the image; None: write into the image's own file or
            block device, in the order described above.
        writes: (physical address, bytes) to put into memory; where they overlap, the later one wins.
        compressor: None: as the image has it. Else one that the resuming kernel reads, see `ImageRules.compressors`.
        zero_pages: leave out pages that are all zeroes, see `ImageRules.zero_pages`; None: if the image does.
        progress: called with the number of pages written.

    Raises:
        HibernautError: the image does not fit into its old blocks (the message has the number missing), or the file is
            in use; nothing was written. In place also: the new image could not be written completely; the message says
            what the area holds now, as does a note of KeyboardInterrupt.
        FormatError: the image is one of suspend-utils, or a write goes to a frame that it does not list; or in place,
            the file is compressed.
        CorruptImage: the image is damaged, or was changed while it was read.
        OSError: as the system reports it; nothing was written.
    """
    if image.header.userland is not None:
        raise FormatError(
            f"this is {USWSUSP}, which is not rewritten",
            source=image.name,
            advice="write an image of the kernel's from its memory: `hibernaut save`",
        )
    for paddr, data in writes:
        refuse_unlisted(image, paddr, len(data))
    pfns, info, area = image.pfns, image.info, ExistingArea(image)
    packed = compressor or image.compressor
    elide = bool(image.zero_frames.total_pages) if zero_pages is None else zero_pages
    if out is not None:
        memory = _memory(image, writes)
        return write_image(out, memory, pfns, info, area, compressor=packed, zero_pages=elide, progress=progress)
    with claimed(image) as fd, tempfile.TemporaryFile(buffering=0) as file:
        spool, memory = file.fileno(), _memory(image, writes)
        written, blocks = spool_image(
            spool, memory, pfns, info, area, compressor=packed, zero_pages=elide, progress=progress
        )
        refuse_changed(image, fd)
        _put(image, blocks, spool, fd)
    return written


def refuse_unlisted(image: Image, paddr: int, size_bytes: int) -> None:
    """Refuse a write that touches a frame which the image does not list.

    Raises:
        FormatError: the message has the first frame that is not listed.
    """
    pfn, end = paddr >> PAGE_SHIFT, -(-(paddr + size_bytes) >> PAGE_SHIFT)
    while pfn < end:
        pfn = min(image.frames.end_of(pfn) or pfn, end)
        if pfn < end:
            raise FormatError(
                f"cannot write at {paddr:#x}: frame {pfn:#x} is not in the image",
                source=image.name,
                advice="give an address within pages that the image saves",
            )


def _memory(image: Image, writes: Sequence[tuple[int, bytes]]) -> Overlay:
    """Return the image's memory with the writes. Its CRC is checked first, since a new one would hide damage."""
    if image.header.crc32 is not None:
        image.for_each(lambda _pfns, _pages: None)
    memory = Overlay(image.memory())
    for paddr, data in writes:
        memory.write(paddr, data)
    return memory


@contextmanager
def claimed(image: Image, advice: str = "write to another file (OUT)") -> Iterator[int]:
    """Yield a descriptor for writing to an image's own file or block device, exclusive to this process.

    The kernel refuses a block device that is mounted or claimed (O_EXCL); locks refuse a file that QEMU has open
    (F_OFD_SETLK), and flock one that a cooperating program uses.

    Args:
        image: the image.
        advice: what to do instead where its file cannot be written to.

    Raises:
        HibernautError: it is in use.
        FormatError: it is compressed, or inside another volume.
        OSError: it cannot be opened for writing.
    """
    file = image.area.file
    if not isinstance(file, PlainFile):
        raise FormatError("an image inside a volume is not changed in place", source=file.name, advice=advice)
    if file.compression is not None:
        raise FormatError(
            f"the file is {file.compression}-compressed",
            source=file.name,
            advice=f"unpack it first, or {advice}",
        )
    source = os.fstat(file.fileno())
    device = stat.S_ISBLK(source.st_mode)
    _refuse_swap(file.name, source)
    try:
        fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if device else 0))
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ETXTBSY):
            raise HibernautError(
                f"{file.name}: in use (mounted, or active swap)", advice="unmount it, or end it with swapoff"
            ) from error
        raise
    try:
        found = os.fstat(fd)
        if not _same(found, source):
            raise CorruptImage(
                "another file replaced it while it was being read",
                source=file.name,
                advice="end what writes there, and try again",
            )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not device:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except (BlockingIOError, PermissionError) as error:
            raise HibernautError(
                f"{file.name}: another program has locked it", advice="end that program, and try again"
            ) from error
        yield fd
    finally:
        os.close(fd)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode):
        return one.st_rdev == other.st_rdev
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _refuse_swap(name: str, source: os.stat_result) -> None:
    """Refuse a file that the running system swaps to (/proc/swaps: one line each, white space in names as octal)."""
    try:
        lines = SWAPS.read_bytes().splitlines()[1:]
    except OSError:  # a kernel without swap
        return
    for line in filter(None, lines):
        path = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[0])
        try:
            used = os.stat(path)
        except OSError:  # " (deleted)", or another mount namespace's
            continue
        if _same(used, source):
            raise HibernautError(f"{name}: this system is swapping to it", advice="end that with swapoff")


def refuse_changed(image: Image, fd: int) -> None:
    """Refuse a file whose header is no more the one that was read. Raises CorruptImage."""
    area = image.area
    if os.pread(fd, PAGE_SIZE, area.offset_of(area.header_block)) != image.header.block:
        raise CorruptImage(
            "the header was changed while the image was read",
            source=image.name,
            advice="end what writes there, and try again",
        )


def _put(image: Image, blocks: NDArray[np.int64], spool: int, fd: int) -> None:
    """Copy the new image from the spool file to its area: steps 2 to 4."""
    area = image.area
    runs = [(area.offset_of(first), count * PAGE_SIZE) for first, count in contiguous_runs(blocks)]
    if stat.S_ISREG(os.fstat(fd).st_mode):
        for at, size_bytes in runs:  # filling holes may find the disk full: better before the old image is given up
            allocate(fd, at, size_bytes, image.name)
    header_at = area.offset_of(area.header_block)
    header = os.pread(spool, PAGE_SIZE, header_at)
    holds = "the old image or none"
    try:
        write_all(fd, memoryview(image.header.without_image().block), header_at)
        os.fsync(fd)
        holds = "no image"
        _copy(spool, fd, runs)
        os.fsync(fd)
        holds = "the new image or none"
        write_all(fd, memoryview(header), header_at)
        os.fsync(fd)
        holds = "the new image"
    except OSError as error:
        raise HibernautError(
            f"{image.name}: {error.strerror} while the image was being replaced; the area now holds {holds}",
            advice="look into the kernel log for errors of the device, and run `hibernaut inspect` on it",
        ) from error
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{image.name} now holds {holds}")
        raise


def _copy(spool: int, fd: int, runs: Sequence[tuple[int, int]]) -> None:
    writeback = Writeback(fd)
    for at, size_bytes in runs:
        for start in range(at, at + size_bytes, PIECE_BYTES):
            piece = os.pread(spool, min(PIECE_BYTES, at + size_bytes - start), start)
            write_all(fd, memoryview(piece), start)
            writeback.wrote(len(piece))
