# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of frames of which meta pages are lost: the rows of the frames that are left are right, or not given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.swsusp.pfns import pack_pfns
from hibernaut.swsusp.salvage.loose_list import contradicting_groups, list_end, list_is_credible, read_loose_list


@st.composite
def lists(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Frames and zero flags of an image with up to 40 meta pages; sometimes a full last page."""
    count = draw(st.integers(1, 20000) | st.sampled_from([512, 1024, 512 * 33]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    pfns = np.cumsum(rng.integers(1, 5, count))
    zero = rng.random(count) < draw(st.sampled_from([0, 0.1, 0.9]))
    return pfns, zero


@given(content=lists(), lost=st.sets(st.integers(0, 40), max_size=4))
def test_rows_are_right_or_not_given(content: tuple[np.ndarray, np.ndarray], lost: set[int]) -> None:
    """Compared with a walk through the whole list, one frame after another."""
    pfns, zero = content
    pages = pack_pfns(pfns, zero).view("<u8")
    meta, stored = len(pages), int((~zero).sum())
    right = {}
    row = meta
    for pfn, flag in zip(pfns.tolist(), zero.tolist(), strict=True):
        right[pfn] = -1 if flag else row
        row += not flag
    known = np.array([number not in lost for number in range(meta)])
    last = int(np.flatnonzero(known)[-1]) + 1 if known.any() else 0
    found = read_loose_list(pages[:last], known[:last], meta, stored)
    assert found.lost_pages == len(lost & set(range(meta)))
    assert found.listed == (len(pfns) if last == meta and known[-1] else None)
    on_known = np.repeat(known, 512)[: len(pfns)]
    assert np.array_equal(found.pfns, pfns[on_known])
    assert np.array_equal(found.zero, zero[on_known])
    on_list = np.isin(np.arange(int(pfns[-1]) + 600), pfns)
    uncertain = found.uncertain.contains(np.arange(len(on_list)))
    assert (on_list & ~np.isin(np.arange(len(on_list)), found.pfns) <= uncertain).all()
    assert not found.uncertain.contains(found.pfns).any()
    assert bool(len(found.uncertain)) >= bool(found.lost_pages and not on_known.all())
    assert not len(found.uncertain) or found.lost_pages
    for pfn, given_row in zip(found.pfns.tolist(), found.row.tolist(), strict=True):
        assert given_row in (-1, right[pfn])
    gaps = np.flatnonzero(~known[:last])
    sure = np.repeat(np.arange(meta), 512)[: len(pfns)][on_known]
    front = sure < (gaps[0] if len(gaps) else meta)
    back = sure > (gaps[-1] if len(gaps) and found.listed is not None else meta)
    certain = (front | back) & ~found.zero
    assert (found.row[certain] >= 0).all()


def test_rows_between_two_lost_pages_without_zero_pages() -> None:
    """They are known if no page of zeroes is missing in the counts."""
    pfns = np.arange(10, 10 + 512 * 6)
    zero = np.zeros(len(pfns), dtype=np.bool_)
    pages = pack_pfns(pfns, zero).view("<u8")
    known = np.array([True, False, True, False, True, True])
    found = read_loose_list(pages, known, 6, len(pfns))
    assert np.array_equal(found.row, 6 + found.pfns - 10)
    zero[600] = True
    pages = pack_pfns(pfns, zero).view("<u8")
    found = read_loose_list(pages, known, 6, len(pfns) - 1)
    between = (found.pfns >= 10 + 1024) & (found.pfns < 10 + 1536)
    assert (found.row[between] == -1).all()


@given(content=lists())
def test_the_end_of_a_list_gives_its_counts(content: tuple[np.ndarray, np.ndarray]) -> None:
    """From units of 32 pages, followed by data; a list whose last page is full ends where frames no longer ascend."""
    pfns, zero = content
    pages = pack_pfns(pfns, zero)
    stream = np.concatenate((pages, np.full((40, 4096), 7, dtype=np.uint8)))
    units = (stream[first : first + 32] for first in range(0, len(stream), 32))
    assert list_end(units) == (len(pages), int((~zero).sum()))


def test_pages_that_contradict_each_other() -> None:
    """Both neighbours are taken for wrong, since either can be; room for lost entries is part of the comparison."""
    pages = np.arange(1, 1 + 512 * 4, dtype="<u8").reshape(4, 512).copy()
    known = np.ones(4, dtype=np.bool_)
    assert contradicting_groups(pages, known, 1) == []
    pages[2] += np.uint64(600)
    assert contradicting_groups(pages, known, 1) == [2, 3]
    pages = np.arange(1, 1 + 512 * 4, dtype="<u8").reshape(4, 512).copy()
    pages[2] -= np.uint64(1)
    assert contradicting_groups(pages, np.array([True, False, True, True]), 1) == [0, 2]


@pytest.mark.parametrize("last", [False, True])
def test_an_end_mark_ends_only_the_last_page(last: bool) -> None:
    """And frames ascend, within the address space."""
    words = np.arange(1, 513, dtype="<u8")
    assert list_is_credible(words, last=last)
    words[300] = np.uint64(0xFFFFFFFFFFFFFFFF)
    assert list_is_credible(words, last=last) is last
    words[300] = 1
    assert not list_is_credible(words, last=last)
    words[300] = np.uint64(1 << 41)
    assert not list_is_credible(words, last=last)
