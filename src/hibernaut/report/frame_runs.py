# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of frames packed into text, for the script of a page.

The text is base64 of zlib of: the bytes of all classes, one a run; then the lengths, LEB128 each. A class is a row of a
table of the codes that occur together. A random map of 16 GiB, a run for each frame, takes 1.5 bytes a run at most.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.paging.spans import Codes

__all__ = ["PackedRuns", "pack_runs", "unpack_runs"]

MOST_CLASSES = 256


@dataclass(frozen=True)
class PackedRuns:
    """Runs of frames as text.

    Attributes:
        classes: codes of each class, a tuple with one of each dimension.
        runs: number of runs.
        text: the runs.
    """

    classes: tuple[tuple[int, ...], ...]
    runs: int
    text: str


def pack_runs(pages: NDArray[np.int64], *dimensions: Codes) -> PackedRuns:
    """Return runs as text.

    Args:
        pages: length of each run, shape (n,), positive.
        dimensions: codes of each run, uint8, shape (n,) each.

    Raises:
        ValueError: there are more than 256 classes.
    """
    keys = np.zeros(len(pages), dtype=np.int64)
    for codes in dimensions:
        keys = keys << 8 | codes
    classes, which = np.unique(keys, return_inverse=True)
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"{len(classes)} classes of frames; at most {MOST_CLASSES} fit in a byte")
    data = which.reshape(-1).astype(np.uint8).tobytes() + _leb128(pages)
    text = base64.b64encode(zlib.compress(data)).decode()
    shifts = range(8 * (len(dimensions) - 1), -1, -8)
    rows = tuple(tuple(key >> shift & 0xFF for shift in shifts) for key in classes.tolist())
    return PackedRuns(rows, len(pages), text)


def unpack_runs(packed: PackedRuns) -> tuple[NDArray[np.int64], list[Codes]]:
    """Return the lengths and the codes of packed runs, as `pack_runs` was given them."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(packed.text)), dtype=np.uint8)
    which, rest = data[: packed.runs], data[packed.runs :]
    last = np.flatnonzero(rest < 0x80)
    first = np.concatenate(([0], last[:-1] + 1)) if len(last) else last
    pages = np.zeros(len(last), dtype=np.int64)
    for place in range(int((last - first).max(initial=0)) + 1):
        at = first + place
        within = at <= last
        pages[within] |= (rest[at[within]].astype(np.int64) & 0x7F) << (7 * place)
    table = np.array(packed.classes, dtype=np.uint8)
    return pages, [table[which, column] for column in range(table.shape[1])]


def _leb128(values: NDArray[np.int64]) -> bytes:
    """Return numbers in seven bits a byte, the lowest first, the top bit set but in the last byte of each."""
    widths = np.ones(len(values), dtype=np.int64)
    rest = values >> 7
    while rest.any():
        widths += rest > 0
        rest = rest >> 7
    out = np.zeros(int(widths.sum()), dtype=np.uint8)
    first = np.cumsum(widths) - widths
    for place in range(int(widths.max(initial=0))):
        here = widths > place
        more = widths[here] > place + 1
        out[first[here] + place] = (values[here] >> (7 * place) & 0x7F) | (more << 7)
    return out.tobytes()
