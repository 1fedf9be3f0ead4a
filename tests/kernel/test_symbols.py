# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of a kernel, read from its memory."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.kernel.facts import machine_facts
from hibernaut.kernel.suspend import kernel_state
from hibernaut.kernel.symbols import kernel_symbols
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.swsusp import open_image
from tests.conftest import Golden
from tests.kernel.stopped import StoppedKernel, refusal


def test_symbols_are_at_run_time_addresses(golden: Golden) -> None:
    """With KASLR too `restore_registers` is where the image's info page says; static symbols are there."""
    with open_image(golden("swap-6.12-lz4.img")) as image:
        symbols = kernel_symbols(image.memory())
        assert symbols["restore_registers"].address == image.info.jump_address
    assert symbols["orig_bm"].size > 0
    assert symbols.get("no_such_symbol") is None
    with pytest.raises(FormatError, match="no symbol no_such_symbol"):
        symbols["no_such_symbol"]


def test_no_kernel_in_memory() -> None:
    """Memory without VMCOREINFO is refused, and so is an empty VMCOREINFO."""
    memory = SegmentMemory([Segment(0, np.zeros((4, 4096), dtype=np.uint8))])
    with pytest.raises(FormatError, match=r"no VMCOREINFO .*: dump$"):
        kernel_state(memory, name="dump")
    with pytest.raises(FormatError, match="does not say where"):
        machine_facts(memory, b"OSRELEASE=6.1\n")


@pytest.mark.parametrize("count", [0, (1 << 20) + 1, 0xFFFF_FFFF])
def test_kallsyms_has_bounds(kernel: StoppedKernel, count: int) -> None:
    """Nor does the number of symbols."""
    memory = kernel.with_u64(int(kernel.facts["SYMBOL(kallsyms_num_syms)"], 16), count, 4)
    assert f"kallsyms_num_syms is {count}" in refusal(kernel, memory)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("OFFSET(pglist_data.node_spanned_pages)", "171584", "VMCOREINFO and BTF have other offsets"),
        ("LENGTH(node_data)", "99999999", "LENGTH"),
        ("SIZE(pglist_data)", "-5", "SIZE"),
        ("NUMBER(phys_base)", "no number", "does not say where"),
        ("SYMBOL(kallsyms_num_syms)", "", "has no SYMBOL"),
        ("SYMBOL(kallsyms_names)", "ffffffffffffffffffffff", "kallsyms_names"),
    ],
)
def test_vmcoreinfo_is_not_trusted(kernel: StoppedKernel, key: str, value: str, expected: str) -> None:
    """Its values are checked like all others."""
    text = kernel.text.replace(f"{key}={kernel.facts[key]}".encode(), f"{key}={value}".encode())
    with pytest.raises(HibernautError, match=expected):
        kernel_state(kernel.memory, text)
