# SPDX-License-Identifier: GPL-2.0-or-later
"""The marker pages that golden guests hold in /tmp/data, by the formula of their generator, written a second time."""

from __future__ import annotations

MASK = (1 << 64) - 1


def marker_page(index: int, seed: int) -> bytes:
    """Return page `index`: a header, then random bytes, lines of text, zeroes, or half of each."""
    kind = index % 4
    head = b"HLAB-MARKER-PAGE %08x SEED %016x KIND %d\n" % (index, seed, kind)
    page = bytearray(head.ljust(64, b"\0").ljust(4096, b"\0"))
    if kind == 1:
        line = b"line of page %08x, the quick brown fox\n" % index
        page[64:] = (line * (4032 // len(line) + 1))[:4032]
    state = seed ^ ((index + 1) * 0x9E3779B97F4A7C15 & MASK)
    for at in range(64, 64 + {0: 4032, 3: 2016}.get(kind, 0), 8):
        state ^= state >> 12
        state = (state ^ state << 25) & MASK
        state ^= state >> 27
        page[at : at + 8] = (state * 0x2545F4914F6CDD1D & MASK).to_bytes(8, "little")
    return bytes(page)
