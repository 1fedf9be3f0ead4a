# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of a disk that a loss of power may leave after any call of a process.

The file system is as weak as POSIX lets it be (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, call
such models abstract persistence models). Of all calls since the last sync of what they change:

- each sector of a file, of 512 bytes, holds any of the contents that it has had; its size is any that it has had. A
  file that was extended may hold zeroes where its data is missing;
- each entry of a folder is any of those that it has had: entries reach the disk in any order, within a folder too, a
  rename is one step, and may come before the data of the file;
- a sync of a file covers its data and its size, not its name; a sync of a folder its entries, not the files.

A process that is killed leaves what its calls did: the state in which nothing is lost.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.crashes.calls import Call, Place, Tree

__all__ = ["Disk", "State", "all_states", "lose_power"]

SECTOR = 512
MOST_CONTENTS = 4096
"""Contents of one file up to which all are enumerated; beyond, `SAMPLES` of them."""
MOST_ENTRIES = 10
"""Calls that change entries up to which all subsets are enumerated."""
SAMPLES = 50

State = Mapping[str, bytes | None]
"""Content of each file by its path below the root; None is a folder."""


@dataclass
class _File:
    """A file: its content on the disk, and the calls since its last sync."""

    durable: bytes
    pending: list[Call] = field(default_factory=list)

    def now(self) -> bytes:
        """Return the content that the process sees."""
        content = bytearray(self.durable)
        for call in self.pending:
            _apply(content, call)
        return bytes(content)

    def versions(self) -> tuple[dict[int, list[bytes]], list[int], int]:
        """Return the contents of each sector that has several, all sizes, and the number of combinations."""
        content = bytearray(self.durable)
        sectors: dict[int, list[bytes]] = {}
        sizes = [len(content)]
        for call in self.pending:
            before = len(content)
            if call.what == "write":
                touched = range(call.offset // SECTOR, -(-(call.offset + len(call.data)) // SECTOR))
            else:
                touched = range(min(call.offset, before) // SECTOR, -(-before // SECTOR))
            for number in touched:
                sectors.setdefault(number, [_sector(content, number)])
            _apply(content, call)
            for number in touched:
                if (new := _sector(content, number)) not in sectors[number]:
                    sectors[number].append(new)
            if len(content) not in sizes:
                sizes.append(len(content))
        sectors = {number: versions for number, versions in sectors.items() if len(versions) > 1}
        count = len(sizes)
        for versions in sectors.values():
            count *= len(versions)
        return sectors, sizes, count

    def contents(self, seed: int) -> tuple[list[bytes], bool]:
        """Return the contents that may be on the disk, and whether these are all."""
        if not self.pending:
            return [self.durable], True
        sectors, sizes, count = self.versions()
        if count <= MOST_CONTENTS:
            picks = itertools.product(*sectors.values())
            made = [self._made(dict(zip(sectors, pick, strict=True)), size) for pick in picks for size in sizes]
            return list(dict.fromkeys(made)), True
        return list(dict.fromkeys(self._sampled(sectors, sizes, random.Random(seed)))), False

    def _sampled(self, sectors: dict[int, list[bytes]], sizes: list[int], luck: random.Random) -> Iterator[bytes]:
        old, new = ({number: versions[at] for number, versions in sectors.items()} for at in (0, -1))
        for size in {sizes[0], sizes[-1]}:
            yield self._made(old, size)
            yield self._made(new, size)
        numbers = sorted(sectors)
        for _ in range(SAMPLES):
            share, size = luck.choice((0.02, 0.5, 0.98)), luck.choice(sizes) if luck.random() < 0.3 else sizes[-1]
            yield self._made({one: sectors[one][-1 if luck.random() < share else 0] for one in numbers}, size)
        for one in luck.sample(numbers, min(len(numbers), SAMPLES)):
            yield self._made({**new, one: luck.choice(sectors[one][:-1])}, sizes[-1])
            yield self._made({**old, one: luck.choice(sectors[one][1:])}, sizes[-1])

    def _made(self, sectors: Mapping[int, bytes], size: int) -> bytes:
        content = bytearray(self.durable)
        content += bytes(max(0, size - len(content)))
        for number, data in sectors.items():
            end = (number + 1) * SECTOR
            content += bytes(max(0, end - len(content)))
            content[number * SECTOR : end] = data
        return bytes(content[:size])


def _sector(content: bytearray, number: int) -> bytes:
    return bytes(content[number * SECTOR : (number + 1) * SECTOR]).ljust(SECTOR, b"\0")


def _apply(content: bytearray, call: Call) -> None:
    if call.what == "write":
        content += bytes(max(0, call.offset - len(content)))
        content[call.offset : call.offset + len(call.data)] = call.data
    elif call.what == "size":
        del content[call.offset :]
        content += bytes(call.offset - len(content))


class Disk:
    """The content of a disk, and the calls that are still on their way to it.

    Args:
        tree: the content before the first call, all of it on the disk.
    """

    def __init__(self, tree: Tree) -> None:
        self._files = {number: _File(content) for number, content in tree.files.items()}
        self._links = dict(tree.links)
        self._folders = {number: dict(entries) for number, entries in tree.folders.items()}
        self._pending: list[Call] = []

    def do(self, call: Call) -> None:
        """Add a call."""
        if call.what in ("write", "size"):
            self._files[call.file].pending.append(call)
        elif call.what == "sync":
            self._sync(call.file)
        elif call.what == "sync all":
            for number in (*self._files, *self._folders):
                self._sync(number)
        else:
            if call.what == "make":
                self._files[call.file] = _File(b"")
            elif call.what == "folder":
                self._folders[call.file] = {}
            elif call.what == "symlink":
                self._links[call.file] = call.data
            if call.place is not None:
                self._pending.append(call)

    def _sync(self, number: int) -> None:
        if number in self._files:
            self._files[number] = _File(self._files[number].now())
            return
        needed = [at for at, call in enumerate(self._pending) if number in {folder for folder, _ in _places(call)}]
        kept = set(self._closed(needed))
        self._folders = self._entries(sorted(kept))
        self._pending = [call for at, call in enumerate(self._pending) if at not in kept]

    def _closed(self, wanted: Sequence[int]) -> Iterator[int]:
        """Yield the calls that must be on the disk if some are: earlier ones that change the same entry."""
        places: set[Place] = set()
        for at in range(len(self._pending) - 1, -1, -1):
            if at in wanted or places & set(_places(self._pending[at])):
                places |= set(_places(self._pending[at]))
                yield at

    def _entries(self, kept: Sequence[int]) -> dict[int, dict[str, int]]:
        """Return the entries of all folders with some of the calls that are on their way."""
        folders = {number: dict(entries) for number, entries in self._folders.items()}
        for at in kept:
            call = self._pending[at]
            assert call.place is not None
            folder, name = call.place
            if call.what in ("unlink", "rmdir"):
                folders[folder].pop(name, None)
                continue
            if call.old is not None:
                folders[call.old[0]].pop(call.old[1], None)
            folders[folder][name] = call.file
        return folders

    def _subsets(self, seed: int) -> tuple[list[tuple[int, ...]], bool]:
        """Return the sets of pending calls that may be on the disk, and whether these are all."""
        count = len(self._pending)
        if count <= MOST_ENTRIES:
            every = itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(count + 1))
            return [one for one in every if set(self._closed(one)) == set(one)], True
        luck = random.Random(seed)
        picked = [tuple(range(stop)) for stop in range(count + 1)]
        for _ in range(SAMPLES):
            share = luck.choice((0.1, 0.5, 0.9))
            picked.append(tuple(sorted(self._closed([at for at in range(count) if luck.random() < share]))))
        return list(dict.fromkeys(picked)), False

    def states(self, seed: int = 0) -> tuple[list[State], bool]:
        """Return the states that a loss of power may leave now, the one that a kill leaves last; whether all."""
        subsets, whole = self._subsets(seed)
        found: list[State] = []
        for kept in subsets:
            folders = self._entries(kept)
            named = dict(self._named(folders, 1, ""))
            files = sorted({number for number in named.values() if number in self._files})
            choices = []
            for number in files:
                contents, every = self._files[number].contents(seed + number)
                choices.append(contents)
                whole = whole and every
            products: Iterator[tuple[bytes, ...]] = itertools.product(*choices)
            if len(choices) > 1 and _product(map(len, choices)) > MOST_CONTENTS:
                luck, whole = random.Random(seed), False
                products = iter([tuple(luck.choice(one) for one in choices) for _ in range(4 * SAMPLES)])
            for pick in products:
                content = dict(zip(files, pick, strict=True))
                found.append(self._state(named, content))
        return [*found, self.now()], whole

    def now(self) -> State:
        """Return the state that the process sees, which a kill leaves."""
        named = dict(self._named(self._entries(range(len(self._pending))), 1, ""))
        numbers = [number for number in named.values() if number in self._files]
        return self._state(named, {number: self._files[number].now() for number in numbers})

    def _state(self, named: Mapping[str, int], content: Mapping[int, bytes]) -> State:
        made: dict[str, bytes | None] = {}
        for path, number in named.items():
            made[path] = None if number in self._folders else content.get(number, self._links.get(number, b""))
        return made

    def _named(self, folders: Mapping[int, Mapping[str, int]], number: int, above: str) -> Iterator[tuple[str, int]]:
        for name, one in folders[number].items():
            yield above + name, one
            if one in folders:
                yield from self._named(folders, one, f"{above}{name}/")


def _places(call: Call) -> tuple[Place, ...]:
    return tuple(place for place in (call.place, call.old) if place is not None)


def _product(counts: Iterator[int]) -> int:
    product = 1
    for count in counts:
        product *= count
    return product


def all_states(tree: Tree, calls: Sequence[Call], seed: int = 0) -> Iterator[tuple[int, State, bool]]:
    """Yield every state that a loss of power may leave: the number of calls made, the state, and whether of all."""
    disk = Disk(tree)
    for stop in range(len(calls) + 1):
        states, whole = disk.states(seed)
        yield from ((stop, state, whole) for state in states)
        if stop < len(calls):
            disk.do(calls[stop])


def lose_power(fd: int, done: list[Call], seed: int, share: float) -> None:
    """Write what reached the disk of some calls: all up to the last sync, and a share of the sectors since then."""
    luck = np.random.default_rng(seed)
    synced = max((number + 1 for number, call in enumerate(done) if call.what == "sync"), default=0)
    for number, call in enumerate(done):
        if call.what != "write":
            continue
        if number < synced:
            os.pwrite(fd, call.data, call.offset)
            continue
        kept = luck.random(-(-len(call.data) // SECTOR)) < share
        edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).tolist()
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            os.pwrite(fd, call.data[first * SECTOR : last * SECTOR], call.offset + first * SECTOR)
