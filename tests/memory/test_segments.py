# SPDX-License-Identifier: GPL-2.0-or-later
"""Segments against a model that is a dictionary of pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.memory.model import build, check
from tests.strategies import segment_lists

frames = st.lists(st.integers(-3, 60), max_size=20)


@given(segment_lists(), frames)
def test_segments_read_as_a_dictionary_of_pages(segments: list[tuple[int, int]], asked: list[int]) -> None:
    """Runs, gathers, blocks and ranges of segments in any order agree with the model; the earlier segment wins."""
    check(*build(segments), asked)
