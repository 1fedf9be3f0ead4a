# SPDX-License-Identifier: GPL-2.0-or-later
"""The fingerprint of a real machine: how a saved run recognizes the dump or image that it begins on."""

from __future__ import annotations

import hashlib

import numpy as np

from hibernaut.exploration.encoding import encode, encode_pages
from hibernaut.exploration.state import digest_of, frame_ranges
from hibernaut.hibernation.page_tables import page_tables
from hibernaut.linux.machine import Machine
from hibernaut.memory.ranges import FrameRanges

__all__ = ["fingerprint", "is_fingerprint_of"]

SCHEME = "2:"
"""Prefix of a fingerprint; those without it are of `_fingerprint_1`."""


def fingerprint(machine: Machine) -> str:
    """Return a digest of a machine's root, direct map, free frames, saveable pages and page tables.

    The digest is of the encoding in `encoding`.
    """
    free, listed = frame_ranges(machine.allocator.free_ranges()), frame_ranges(machine.saveable)
    numbers = encode([machine.cr3, machine.levels, machine.base, machine.end_pfn, free, listed])
    tables = encode_pages({pfn: machine.memory.page(pfn) for pfn in page_tables(machine)})
    return SCHEME + digest_of((numbers, *tables)).hex()


def is_fingerprint_of(told: str, machine: Machine) -> bool:
    """Return whether a fingerprint, of whatever scheme, is that of a machine."""
    return told == (fingerprint(machine) if told.startswith(SCHEME) else _fingerprint_1(machine))


def _fingerprint_1(machine: Machine) -> str:
    """Return the fingerprint of the first scheme, which saved runs have that were written before `SCHEME`.

    The numbers are in decimal, as Python writes tuples and lists of them; then follow the page tables, ascending, each
    its frame as a u64 and its bytes, none if it is not in the memory.
    """
    numbers = (machine.cr3, machine.levels, machine.base, machine.end_pfn)
    free = _ranges_in_words(machine.allocator.free_ranges())
    listed = "None" if machine.saveable is None else _ranges_in_words(machine.saveable)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"({', '.join(f'{int(number)}' for number in numbers)}, {free}){listed}".encode())
    for pfn in sorted(page_tables(machine)):
        page = machine.memory.page(pfn)
        digest.update(pfn.to_bytes(8, "little"))
        digest.update(b"" if page is None else np.ascontiguousarray(page).tobytes())
    return digest.hexdigest()


def _ranges_in_words(frames: FrameRanges) -> str:
    return f"[{', '.join(f'({start}, {pages})' for start, pages in frames)}]"
