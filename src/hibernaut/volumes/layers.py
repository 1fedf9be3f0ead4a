# SPDX-License-Identifier: GPL-2.0-or-later
"""The layers of a disk: what lies in what, and the specification of a volume inside, as one string.

A volume specification is a list of steps, separated by commas: `p3` (partition 3), `luks` (the decrypted volume),
`lv=GROUP/NAME` (a logical volume), `file=/PATH` (a swap file: the volume is the file system's, the header lies where
the file begins).
Virtual disks are opened without a step. A comma or percent sign in a name is written %2C or %25.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from hibernaut.errors import FormatError, HibernautError
from hibernaut.volumes.closing import Closing
from hibernaut.volumes.containers import container_of, open_container
from hibernaut.volumes.declarations import SWAP_MARKS, SWAP_PAGE_SIZES
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.filesystems import SwapFile, file_in, file_system_of, swap_files
from hibernaut.volumes.luks import is_luks, unlock
from hibernaut.volumes.lvm import LogicalVolume, PhysicalVolume, logical_volumes, physical_volume
from hibernaut.volumes.partitions import has_partition_table, partitions_of
from hibernaut.volumes.volume import Bytes, Slice, Volume

__all__ = ["Layer", "OpenedVolume", "layers", "open_volume"]

MOST_LAYERS = 8
"""Layers inside one another, as deep as is looked."""
MOST_VOLUMES = 1024
"""Volumes of one disk that are looked into: a table may name parts that hold the table again."""
STEP = re.compile(r"p(?P<number>[1-9]\d{0,3})|luks|lv=(?P<lv>[^/]+/.+)|file=(?P<file>/.+)")
LIST = "run `hibernaut find` on the disk"
EXAMPLE = "steps such as p3,luks,lv=vg/swap,file=/swapfile"


@dataclass(frozen=True, eq=False)
class Layer:
    """Something on a disk.

    Attributes:
        steps: the steps to it; empty for the disk itself.
        kind: swap for a swap area of any state; partition, luks, lvm, a format of a virtual disk, or a file system.
        size_bytes: its length.
        detail: type and label of a partition, path of a swap file, page size of an area.
        problem: why nothing inside is listed; None if nothing hinders.
        volume: the volume of a swap area; None for any other layer.
        block: block of its swap header.
    """

    steps: tuple[str, ...]
    kind: str
    size_bytes: int
    detail: str = ""
    problem: str | None = None
    volume: Volume | None = None
    block: int = 0

    @property
    def specification(self) -> str:
        """The steps to it, as `open_volume` reads them."""
        return ",".join(self.steps)


class OpenedVolume(Closing):
    """A volume inside a file, which is closed with it. See `Volume`.

    Attributes:
        name: name in messages.
        size_bytes: length.
        block: block of the swap header that the steps lead to.
    """

    def __init__(self, stack: ExitStack, volume: Volume, block: int) -> None:
        self.name = volume.name
        self.size_bytes = volume.size_bytes
        self.block = block
        self._stack = stack
        self._volume = volume

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """See `Volume.pread`."""
        return self._volume.pread(offset, size_bytes)

    def pread_into(self, offset: int, out: Bytes) -> int:
        """See `Volume.pread_into`."""
        return self._volume.pread_into(offset, out)

    def close(self) -> None:
        """Close the file, and what else the disk lies in."""
        self._stack.close()


def open_volume(path: Path, specification: str, passphrases: Sequence[bytes] = ()) -> OpenedVolume:
    """Open a volume inside a disk.

    Args:
        path: file or device of the disk.
        specification: steps to the volume; empty for the disk itself.
        passphrases: of encrypted volumes among them, tried one after another.

    Raises:
        FormatError: a step is malformed or leads nowhere, or what it leads to is damaged.
        HibernautError: a library is not installed.
        OSError: the file cannot be read.
    """
    with ExitStack() as stack:
        volume, block = _inside(stack.enter_context(open_plain(path)), path, stack), 0
        for step in filter(None, specification.split(",")):
            if block:
                raise FormatError("a swap file is the last step", source=specification, advice=f"give {EXAMPLE}")
            volume, block = _step(volume, step, passphrases, stack)
        return OpenedVolume(stack.pop_all(), volume, block)


def _inside(volume: Volume, path: Path | None, stack: ExitStack) -> Volume:
    """Return the disk in a virtual disk; any other volume as it is."""
    kind = container_of(volume)
    return volume if kind is None else open_container(volume, kind, path, stack)


def _step(volume: Volume, step: str, passphrases: Sequence[bytes], stack: ExitStack) -> tuple[Volume, int]:
    match = STEP.fullmatch(unquote(step))
    if not match:
        raise FormatError(f"{step!r} is not a step to a volume", expected=EXAMPLE, advice=LIST)
    if match["number"]:
        number = int(match["number"])
        found = partitions_of(volume)
        if number not in found:
            known = ", ".join(f"p{one}" for one in sorted(found)) or "none"
            raise FormatError(f"no partition {number}", source=volume.name, expected=known, advice="give one of these")
        return _inside(_partition(volume, number, found[number][:2]), None, stack), 0
    if match["file"]:
        kind = file_system_of(volume)
        if kind is None:
            raise FormatError("there is no file system", source=volume.name, expected="ext4, XFS or Btrfs", advice=LIST)
        found_file = file_in(volume, kind, match["file"])
        if isinstance(found_file, SwapFile):
            return volume, found_file.block
        return _inside(found_file, None, stack), 0
    if match["lv"]:
        return _inside(_logical_volume(volume, match["lv"], passphrases, stack), None, stack), 0
    if not is_luks(volume):
        raise FormatError("no LUKS header", source=volume.name, offset=0, advice=LIST)
    return _inside(unlock(volume, passphrases), None, stack), 0


def _partition(volume: Volume, number: int, place: tuple[int, int]) -> Slice:
    return Slice(volume, *place, f"{volume.name}, p{number}")


def _logical_volume(volume: Volume, name: str, passphrases: Sequence[bytes], stack: ExitStack) -> Volume:
    """Return a logical volume of which all physical ones lie in a volume."""
    walk = _Walk(passphrases, stack, swap_files=False)
    for _ in walk.layers(volume, None, (), MOST_LAYERS):
        pass
    found = {f"{one.group}/{one.name}": one for one in logical_volumes([one for _, one in walk.physical])}
    if name not in found:
        raise FormatError(
            f"no logical volume {name}",
            source=volume.name,
            expected=", ".join(found) or "none is here",
            advice="give one of these",
        )
    opened = found[name].volume
    if opened is None:
        reason = f"{name} cannot be read: {found[name].problem}"
        raise FormatError(reason, source=volume.name, advice="give its device, once LVM has activated it")
    return opened


def layers(path: Path, passphrases: Sequence[bytes] = ()) -> Iterator[Layer]:
    """Yield the layers of a disk, those inside after those that hold them.

    Args:
        path: file or device of the disk.
        passphrases: of encrypted volumes, tried one after another.

    Raises:
        FormatError: the file itself cannot be read as anything.
        OSError: the file cannot be read.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open_plain(path))
        walk = _Walk(passphrases, stack, swap_files=True)
        yield from walk.layers(file, path, (), MOST_LAYERS)
        yield from walk.logical()


class _Walk:
    """A walk over the layers of one disk, with or without the search for swap files in its file systems."""

    def __init__(self, passphrases: Sequence[bytes], stack: ExitStack, *, swap_files: bool) -> None:
        self._passphrases = passphrases
        self._stack = stack
        self._swap_files = swap_files
        self._volumes_left = MOST_VOLUMES + 1  # the last one is only reported
        self.physical: list[tuple[tuple[str, ...], PhysicalVolume]] = []

    def layers(self, volume: Volume, path: Path | None, steps: tuple[str, ...], left: int) -> Iterator[Layer]:
        """Yield what is on a volume. What is damaged is a layer with its problem."""
        if not self._volumes_left:
            return
        self._volumes_left -= 1
        if not self._volumes_left:
            problem = f"the walk ends here: {MOST_VOLUMES} volumes were looked into"
            yield Layer(steps, "not looked into", volume.size_bytes, problem=problem)
            return
        if not left:
            problem = f"it lies {MOST_LAYERS} layers deep"
            yield Layer(steps, "not looked into", volume.size_bytes, problem=problem)
            return
        try:
            yield from self._layers(volume, path, steps, left - 1)
        except HibernautError as error:
            kind = "damaged" if isinstance(error, FormatError) else "not looked into"
            yield Layer(steps, kind, volume.size_bytes, problem=str(error))

    def _layers(self, volume: Volume, path: Path | None, steps: tuple[str, ...], left: int) -> Iterator[Layer]:
        container = container_of(volume)
        if container is not None:
            inner = _or_problem(lambda: open_container(volume, container, path, self._stack))
            yield _layer(steps, container, volume, inner)
            if not isinstance(inner, str):
                yield from self.layers(inner, None, steps, left)
            return
        if is_luks(volume):
            inner = _or_problem(lambda: unlock(volume, self._passphrases))
            yield _layer(steps, "luks", volume, inner)
            if not isinstance(inner, str):
                yield from self.layers(inner, None, (*steps, "luks"), left)
            return
        physical = physical_volume(volume)
        if physical is not None:
            self.physical.append((steps, physical))
            yield Layer(steps, "lvm", volume.size_bytes)
            return
        yield from _areas(volume, steps)
        if has_partition_table(volume):
            for number, found in sorted(partitions_of(volume).items()):
                if not self._volumes_left:
                    return
                detail = " ".join(filter(None, (found.kind, f"{found.label!r}" if found.label else "")))
                here = (*steps, f"p{number}")
                yield Layer(here, "partition", found.size_bytes, detail)
                if 0 < found.start < volume.size_bytes:
                    yield from self.layers(_partition(volume, number, found[:2]), None, here, left)
            return
        system = file_system_of(volume) if self._swap_files else None
        if system is not None:
            yield from _in_file_system(volume, system, steps)

    def logical(self) -> Iterator[Layer]:
        """Yield the logical volumes of all physical ones that were met, and what is on them."""
        done: set[tuple[str, str]] = set()
        while fresh := [one for one in self._found() if (one[1].group, one[1].name) not in done]:
            for steps, found in fresh:
                done.add((found.group, found.name))
                here = (*steps, _quoted(f"lv={found.group}/{found.name}"))
                yield Layer(here, "logical volume", found.size_bytes, problem=found.problem)
                if found.volume is not None:
                    yield from self.layers(found.volume, None, here, MOST_LAYERS - len(here))

    def _found(self) -> list[tuple[tuple[str, ...], LogicalVolume]]:
        """Return the logical volumes, each with the steps that all its physical volumes share."""
        if not self.physical:
            return []
        found = []
        for one in logical_volumes([physical for _, physical in self.physical]):
            routes = [
                steps
                for steps, physical in self.physical
                if physical.metadata is not None and one.group in physical.metadata
            ]
            found.append((_shared(routes), one))
        return found


def _shared(routes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    shared: list[str] = []
    for steps in zip(*routes, strict=False):
        if len(set(steps)) > 1:
            break
        shared.append(steps[0])
    return tuple(shared)


def _quoted(step: str) -> str:
    return step.replace("%", "%25").replace(",", "%2C")


def _or_problem(open_it: Callable[[], Volume]) -> Volume | str:
    """Return what a function opens, or the reason why it cannot."""
    try:
        return open_it()
    except HibernautError as error:
        return str(error)


def _layer(steps: tuple[str, ...], kind: str, volume: Volume, inner: Volume | str) -> Layer:
    if isinstance(inner, str):
        return Layer(steps, kind, volume.size_bytes, problem=inner)
    return Layer(steps, kind, inner.size_bytes)


def _areas(volume: Volume, steps: tuple[str, ...]) -> Iterator[Layer]:
    """Yield the swap area that begins with a volume, if there is one."""
    for page_bytes in SWAP_PAGE_SIZES:
        if volume.pread(page_bytes - len(SWAP_MARKS[0]), len(SWAP_MARKS[0])) in SWAP_MARKS:
            detail = "" if page_bytes == SWAP_PAGE_SIZES[0] else f"pages of {page_bytes} bytes"
            yield Layer(steps, "swap", volume.size_bytes, detail, volume=volume)
            return


def _first(problems: list[str]) -> str | None:
    """Return the first problems, and the number of the others."""
    more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
    return "; ".join([*problems[:3], *more]) or None


def _in_file_system(volume: Volume, system: str, steps: tuple[str, ...]) -> Iterator[Layer]:
    problems: list[str] = []
    files = list(swap_files(volume, system, problems))
    yield Layer(steps, system, volume.size_bytes, problem=_first(problems))
    for found in files:
        here = (*steps, _quoted(f"file={found.path}"))
        yield Layer(here, "swap", found.size_bytes, found.path, volume=volume, block=found.block)
