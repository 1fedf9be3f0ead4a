# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of frames packed into text: the same runs come back, and a machine of 16 GiB stays small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.report.frame_runs import pack_runs, unpack_runs

RUNS = st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(0, 9), st.integers(0, 255)), max_size=40)
GIB16 = 4 << 20
LIMIT = 3 << 20
"""Bytes of a page; a map of 16 GiB is a part of it."""


@given(RUNS)
def test_runs_come_back(runs: list[tuple[int, int, int]]) -> None:
    """Lengths of one to six bytes, codes of both dimensions."""
    pages = np.array([run[0] for run in runs], dtype=np.int64)
    codes = [np.array([run[column] for run in runs], dtype=np.uint8) for column in (1, 2)]
    packed = pack_runs(pages, *codes)
    assert packed.runs == len(runs)
    if runs:
        lengths, found = unpack_runs(packed)
        assert lengths.tolist() == pages.tolist()
        assert [some.tolist() for some in found] == [some.tolist() for some in codes]


def test_too_many_classes_are_refused() -> None:
    """A class is one byte."""
    codes = np.arange(257)
    with pytest.raises(ValueError, match="257 classes"):
        pack_runs(np.ones(257, dtype=np.int64), (codes >> 8).astype(np.uint8), (codes & 255).astype(np.uint8))


@pytest.mark.parametrize("longest", [2, 4, 16])
def test_16_gib_in_random_pieces_stay_below_the_limit(longest: int) -> None:
    """Every run of random length and class: worse than any machine, and a page has room for it."""
    random = np.random.default_rng(longest)
    pages = random.integers(1, longest, 2 * GIB16 // (longest + 1), endpoint=True)
    codes = [random.integers(0, most, len(pages), dtype=np.uint8) for most in (4, 2)]
    assert len(pack_runs(pages, *codes).text) < LIMIT
