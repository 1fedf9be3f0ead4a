# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO in memory: found whole, wherever page and chunk borders fall, and nothing else taken for it."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.memory.elf import open_elf
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.memory.vmcoreinfo import (
    VmcoreinfoFinder,
    find_vmcoreinfo,
    is_vmcoreinfo,
    page_table_root,
    parse_vmcoreinfo,
)
from tests.conftest import Golden
from tests.memory.conftest import Opening

LINES = b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\n"
TEXT = LINES + b"".join(b"OFFSET(field.%d)=%d\n" % (number, number) for number in range(150))
FRAMES = 12


def ram(places: dict[int, bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """12 frames of 0xff with texts at these bytes."""
    data = bytearray(b"\xff" * (FRAMES * PAGE_SIZE))
    for at, text in places.items():
        data[at : at + len(text)] = text
    return np.frombuffer(bytes(data), dtype=np.uint8).reshape(FRAMES, PAGE_SIZE)


@given(st.integers(0, 8 * PAGE_SIZE // 8), st.lists(st.integers(1, 5), min_size=FRAMES, max_size=FRAMES), st.randoms())
def test_found_across_pages_and_chunks(word: int, sizes: list[int], random: Random) -> None:
    """A text at any multiple of 8 is found whole, in chunks of any sizes that come in any order."""
    pages = ram({word * 8: TEXT + b"\x00"})
    bounds = [min(bound, FRAMES) for bound in itertools.accumulate(sizes, initial=0)]
    chunks = [(np.arange(first, last), pages[first:last]) for first, last in itertools.pairwise(bounds)]
    finder = VmcoreinfoFinder()
    random.shuffle(chunks)
    for pfns, piece in chunks:
        finder.feed(pfns, piece)
    assert finder.found(SegmentMemory([Segment(0, pages)])) == TEXT


@given(st.integers(1, FRAMES - 1), st.booleans())
def test_not_found_across_a_gap(cut: int, one_chunk: bool) -> None:
    """Pages that follow each other in the stream but not in memory are not one text; the whole copy elsewhere wins."""
    start = 3 * PAGE_SIZE - 256
    pages = ram({start: TEXT + b"\x00"})
    pfns = np.arange(FRAMES) + np.where(np.arange(FRAMES) >= cut, 5, 0)
    finder = VmcoreinfoFinder()
    for bound in [slice(None)] if one_chunk else [slice(cut), slice(cut, None)]:
        finder.feed(pfns[bound], pages[bound])
    last = (start + len(TEXT)) // PAGE_SIZE
    memory = SegmentMemory([Segment(0, pages[:cut]), Segment(cut + 5, pages[cut:])])
    assert finder.found(memory) == (None if start // PAGE_SIZE < cut <= last else TEXT)


def test_longest_copy_wins() -> None:
    """The kernel has two copies, and one may be older than the last lines that were added."""
    pages = ram({0: LINES + b"\x00", PAGE_SIZE + 24: TEXT + b"\x00", 5 * PAGE_SIZE: LINES + b"\x00"})
    assert find_vmcoreinfo(SegmentMemory([Segment(0, pages)])) == TEXT


@pytest.mark.parametrize(
    "fake",
    [
        b"OSRELEASE=%s\n\x00",
        b"OSRELEASE=6.1.0\nPAGESIZE=4096\n\x00",  # no page tables
        LINES.replace(b"\n", b"\x01") + b"\x00",
        LINES + b"a line without the sign\n\x00",
        b"OSRELEASE=\xe4\n" + LINES + b"\x00",
        LINES,  # 0xff follows, never a NUL in reach
    ],
)
def test_mentions_and_fragments_are_not_taken(fake: bytes) -> None:
    """Format strings, cut texts and texts with rubbish in them are not VMCOREINFO."""
    assert find_vmcoreinfo(SegmentMemory([Segment(0, ram({64: fake}))])) is None


def test_golden_text(opening: Opening, golden: Golden) -> None:
    """A real 6.1's memory: 3263 bytes, and the facts that drgn confirmed."""
    text = find_vmcoreinfo(opening.dump(open_elf, golden("ram-6.1-lzo.elf")).memory)
    assert text is not None
    facts = parse_vmcoreinfo(text)
    assert (len(text), facts["OSRELEASE"], facts["PAGESIZE"]) == (3263, "6.1.0-56-amd64", "4096")
    assert page_table_root(facts) == (0x2A10000, 4)


@given(st.binary(max_size=200))
def test_parsing_takes_anything(text: bytes) -> None:
    """Whatever bytes a note holds, parsing gives a dictionary, and the root is a frame's address or unknown."""
    facts = parse_vmcoreinfo(b"SYMBOL(swapper_pg_dir)=" + text)
    cr3, levels = page_table_root(facts | {"NUMBER(phys_base)": "0"})
    assert (cr3 is None) == (levels is None)
    assert cr3 is None or (cr3 % PAGE_SIZE == 0 and 0 < cr3 < 1 << 52)
    is_vmcoreinfo(text)
