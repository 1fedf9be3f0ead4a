# SPDX-License-Identifier: GPL-2.0-or-later
"""Seals: `seal` and `verify` of an image, as ratios to hashing its bytes alone.

`python benchmarks/seals.py [--mib N] [--repeat N]` writes a file with an image of that size, reads it once, and prints
times relative to SHA-256 of the same blocks from memory in one thread, and relative to reading them.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hibernaut.parallel import worker_count
from hibernaut.sealing.blocks import BlockFile, read_blocks
from hibernaut.sealing.keys import PassphraseKey, ScryptCost
from hibernaut.sealing.leaves import leaves
from hibernaut.sealing.making import make_manifest
from hibernaut.sealing.manifest import open_manifest
from hibernaut.sealing.reading_order import header_of_image, reading_order
from hibernaut.sealing.verification import verify_image

KEY = PassphraseKey(b"benchmark")
COST = ScryptCost(log2_n=14)
PIECE = 256


def write_image(path: Path, mib: int) -> None:
    """Write an image of that many MiB of data, in the order in which a kernel allocates blocks."""
    entries = mib * 256
    maps = -(-entries // 511)
    page = hashlib.shake_128(b"page").digest(4096)
    with path.open("wb") as file:
        header = bytearray(4096)
        struct.pack_into("<IQI10s10s", header, 4060, 0, 1, 2, b"SWAPSPACE2", b"S1SUSPEND\0")
        file.write(header)
        for number in range(maps):
            at = 1 + 512 * number
            count = min(511, entries - 511 * number)
            words = [*range(at + 1, at + 1 + count), *[0] * (511 - count)]
            file.write(struct.pack("<512Q", *words, at + 512 if number + 1 < maps else 0))
            file.write(b"".join(struct.pack("<Q", at + row) + page[8:] for row in range(count)))


def median(repeat: int, work: Callable[[], object]) -> float:
    """Return the median duration of some work, in seconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "area"
        write_image(path, given.mib)
        area = BlockFile(str(path))
        data, manifest, order, _ = make_manifest(area, KEY, cost=COST)
        opened = open_manifest(data, KEY, "manifest")
        piece = memoryview(bytearray(PIECE * 4096))

        def read() -> None:
            for first in range(0, len(order.entries), PIECE):
                some = order.entries[first : first + PIECE]
                read_blocks(area, some, piece[: len(some) * 4096])

        def hash_memory() -> None:
            for _ in range(0, len(order.entries), PIECE):
                hashlib.sha256(piece).digest()

        hashed = median(given.repeat, hash_memory)
        rows = [
            ("SHA-256 of as many bytes in memory, 1 thread", hashed),
            ("reading the blocks, 1 thread, from the page cache", median(given.repeat, read)),
            ("following the map", median(given.repeat, lambda: reading_order(area, 0, header_of_image(area, 0)))),
            ("leaves and marks (seal)", median(given.repeat, lambda: list(leaves(area, order.entries)))),
            ("verify, 1 thread", median(given.repeat, lambda: verify_image(area, opened, workers=1))),
            (f"verify, {worker_count()} threads", median(given.repeat, lambda: verify_image(area, opened))),
        ]
        area.close()
    print(f"image of {given.mib} MiB, manifest of {len(data)} bytes for {manifest.covered_blocks} blocks")
    for name, seconds in rows:
        print(f"{name:52} {seconds / hashed:6.2f}  {given.mib / seconds:8.0f} MiB/s")


if __name__ == "__main__":
    main()
