# SPDX-License-Identifier: GPL-2.0-or-later
"""Kallsyms of a kernel whose VMCOREINFO does not say where it is. Witness: the lines that a newer kernel has."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.kernel.suspend import kernel_state
from hibernaut.kernel.symbol_names import names_in_memory
from hibernaut.kernel.symbols import kernel_symbols
from tests.kernel.stopped import StoppedKernel

PLACES = re.compile(rb"SYMBOL\(kallsyms_(\w+)\)=([0-9a-f]+)\n")


def as_before_6_0(kernel: StoppedKernel) -> bytes:
    """Return the text of VMCOREINFO without the lines about kallsyms."""
    text, dropped = PLACES.subn(b"", kernel.text)
    assert dropped >= 6
    return text


def test_the_tables_are_found_where_vmcoreinfo_has_them(kernel: StoppedKernel) -> None:
    """Each of the six places that drgn needs."""
    told = {name.decode(): int(place, 16) for name, place in PLACES.findall(kernel.text)}
    found = kallsyms_places(KernelMemory(kernel.memory, as_before_6_0(kernel)))
    assert len(found) == 6
    assert found == {name: told[name] for name in found}


def test_symbols_and_state_are_the_same_without_the_lines(kernel: StoppedKernel) -> None:
    """Names, addresses, and what the kernel says of its hibernation."""
    text = as_before_6_0(kernel)
    assert names_in_memory(kernel.memory, text) == names_in_memory(kernel.memory, kernel.text)
    ours, theirs = (kernel_symbols(kernel.memory, one) for one in (text, kernel.text))
    for name in ("swsusp_save", "_stext", "e820_table_firmware"):
        assert ours[name] == theirs[name]
    found, expected = (kernel_state(kernel.memory, one) for one in (text, kernel.text))
    assert len(found.pfns)
    assert np.array_equal(found.pfns, expected.pfns)
    assert found.info == expected.info


@pytest.mark.parametrize(
    ("table", "shift", "words"),
    [
        ("relative_base", 0, "the addresses of kallsyms are not before its names"),
        ("token_table", 256, "the kernel's image has none"),
    ],
)
def test_tables_that_contradict_vmcoreinfo_are_not_believed(
    kernel: StoppedKernel, table: str, shift: int, words: str
) -> None:
    """Another base, which moves `_stext`; tokens that their index does not fit."""
    memory = kernel.with_u64(int(kernel.facts[f"SYMBOL(kallsyms_{table})"], 16) + shift, 0x1234, 8)
    with pytest.raises(FormatError, match=words):
        names_in_memory(memory, as_before_6_0(kernel))


def test_a_kernel_without_a_relative_base_is_read_as_vmcoreinfo_says(kernel: StoppedKernel) -> None:
    """7.2 has no such symbol: what VMCOREINFO says of the names is enough, and nothing is searched for."""
    text = re.sub(rb"SYMBOL\(kallsyms_relative_base\)=.*\n", b"", kernel.text)
    assert text != kernel.text
    found = kallsyms_places(KernelMemory(kernel.memory, text))
    assert found == {name: int(kernel.facts[f"SYMBOL(kallsyms_{name})"], 16) for name in found}
    assert set(found) == {"num_syms", "names", "token_table", "token_index", "offsets"}
