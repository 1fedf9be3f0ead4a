# SPDX-License-Identifier: GPL-2.0-or-later
"""Random damage to everything that is read of a kernel."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from hibernaut.errors import HibernautError
from hibernaut.kernel.suspend import kernel_state
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import Pfns
from hibernaut.memory.physical import PhysicalMemory
from tests.kernel.stopped import StoppedKernel

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn capstone")


@pytest.mark.parametrize("seed", range(60))
def test_damage_ends_in_one_line(kernel: StoppedKernel, seed: int) -> None:
    """Random damage to any frame that is read: a state or an error of ours, never anything else."""
    chance = random.Random(seed)
    frames = kernel.frames()
    name = sorted(frames)[seed % len(frames)]
    memory = Overlay(kernel.memory)
    for pfn in chance.sample(frames[name], chance.randint(1, min(3, len(frames[name])))):
        page = np.array(kernel.memory.page(pfn))
        damage(page, chance)
        memory.write_page(pfn, page)
    pfns, line = outcome(kernel, memory)
    assert "\n" not in line
    assert len(pfns) <= kernel.memory.ranges.total_pages
    assert (np.diff(pfns) > 0).all()


def outcome(kernel: StoppedKernel, memory: PhysicalMemory) -> tuple[Pfns, str]:
    """Return the list of pages that is read, or the refusal."""
    try:
        return kernel_state(memory, kernel.text).pfns, ""
    except HibernautError as error:
        return np.empty(0, dtype=np.int64), str(error)


def damage(page: Any, chance: random.Random) -> None:
    """Change a page in one of several ways."""
    way = chance.randrange(5)
    if way == 0:
        page[chance.randrange(4096)] = chance.randrange(256)
    elif way == 1:
        wild = [0, (1 << 64) - 1, 0xFFFF_8880_0000_0000 + chance.randrange(1 << 28), chance.getrandbits(64)]
        page.view("<u8")[chance.randrange(512)] = chance.choice(wild)
    elif way == 2:
        page[:] = chance.choice([0, 255])
    elif way == 3:
        page[:] = np.frombuffer(chance.randbytes(4096), dtype=np.uint8)
    else:
        for _ in range(30):
            page[chance.randrange(4096)] = chance.randrange(256)
