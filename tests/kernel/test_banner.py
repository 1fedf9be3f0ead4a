# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's banner in its memory. Witness: the release in the golden data's VMCOREINFO, and Debian's package."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hibernaut.kernel.banner import find_banner
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.vmcoreinfo import page_table_root
from hibernaut.swsusp import open_image
from tests.conftest import Golden
from tests.kernel.stopped import StoppedKernel

DEBIAN = re.compile(
    r"Linux version (\S+-amd64) \(debian-kernel@.*\) #1 SMP PREEMPT_DYNAMIC Debian \S+ \(20\d\d-\d\d-\d\d\)"
)


def root_of(kernel: StoppedKernel) -> int:
    """Return the root of the kernel's page tables, as VMCOREINFO has it."""
    root, _ = page_table_root(kernel.facts)
    assert root is not None
    return root


@pytest.mark.parametrize(
    ("name", "release"), [("swap-6.1-lzo.img", "6.1.0-56-amd64"), ("swap-6.12-lz4.img", r"6.12.107+deb13-amd64")]
)
def test_the_banner_of_an_image(golden: Golden, name: str, release: str) -> None:
    """Found from the address that the info page restores to; with and without KASLR, by either compressor."""
    with open_image(golden(name)) as image:
        assert image.info.jump_address is not None
        banner = find_banner(image.memory(), image.info.cr3, image.info.jump_address)
    assert banner is not None
    match = DEBIAN.fullmatch(banner)
    assert match is not None
    assert match[1] == release


def test_the_banner_of_a_dump(kernel: StoppedKernel) -> None:
    """The release is VMCOREINFO's."""
    banner = find_banner(kernel.memory, root_of(kernel), int(kernel.facts["SYMBOL(_stext)"], 16))
    assert banner is not None
    assert banner.startswith(f"Linux version {kernel.facts['OSRELEASE']} (")


def test_no_banner_is_made_up(kernel: StoppedKernel) -> None:
    """An address that is not mapped, a root that is none, memory whose banner is overwritten: None."""
    text = int(kernel.facts["SYMBOL(_stext)"], 16)
    assert find_banner(kernel.memory, root_of(kernel), 0x1000) is None
    assert find_banner(kernel.memory, 0, text) is None
    memory = Overlay(kernel.memory)
    for pfn, pages in kernel.memory.blocks():
        for row in np.flatnonzero([b"Linux version" in page.tobytes() for page in pages]):
            memory.write((pfn + int(row)) << 12, bytes(4096))
    assert find_banner(memory, root_of(kernel), text) is None
