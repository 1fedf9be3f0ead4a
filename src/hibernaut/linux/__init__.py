# SPDX-License-Identifier: GPL-2.0-or-later
"""A model of Linux's mm: direct map, attribute changes, page allocator, fixmap, rules of a kernel line, machine."""

from __future__ import annotations

from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import DirectMap, FrameState
from hibernaut.linux.environment import ChooseFrames, Environment, FailAllocations, Replay
from hibernaut.linux.layout import HoleKind, HoleSpec, Layout
from hibernaut.linux.machine import Machine

__all__ = [
    "ChooseFrames",
    "DirectMap",
    "Environment",
    "FailAllocations",
    "FrameState",
    "HoleKind",
    "HoleSpec",
    "Layout",
    "Machine",
    "Replay",
    "build_machine",
]
