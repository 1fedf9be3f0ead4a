# SPDX-License-Identifier: GPL-2.0-or-later
"""The place of the copy loop: in a real kernel, compared with a search by hand, and in code made for the test."""

from __future__ import annotations

import pytest

from hibernaut.errors import HibernautError
from hibernaut.kernel.symbols import kernel_symbols
from hibernaut.lab.copy_loop import find_copy_loop, symbols_of
from hibernaut.paging.tables import PageTables
from hibernaut.sources import open_memory
from tests.conftest import Golden

pytest.importorskip("capstone", reason="capstone is not installed: pip install drgn capstone")
pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn capstone")

START, NEXT_PFN, AFTER = 0x1000, 0x2000, 0x1040


def call(at: int, target: int) -> bytes:
    """Return the machine code of a call."""
    return b"\xe8" + (target - at - 5).to_bytes(4, "little", signed=True)


def code(compare: bytes = b"\x48\x83\xf8\xff") -> bytes:
    """Call memory_bm_next_pfn; cmp rax, -1 (or what is given); je AFTER; ret."""
    body = b"\x90" * 3 + call(START + 3, NEXT_PFN) + compare
    jump = b"\x74" + (AFTER - START - len(body) - 2).to_bytes(1, "little")
    return (body + jump + b"\xc3").ljust(0x80, b"\x90")


def find(text: bytes) -> tuple[tuple[int, ...], int]:
    """Return the calls and the end of the copy loop in machine code."""
    loop = find_copy_loop(
        lambda address, size: text[address - START :][:size],
        {"swsusp_save": (START, len(text)), "memory_bm_next_pfn": (NEXT_PFN, 16)},
    )
    return loop.before, loop.after


def test_linux_6_1(golden: Golden) -> None:
    """The golden data's own generator stops this kernel at +0x2e5 after the loop: a human found that.

    Its stop before the loop, +0x16c, is followed by resetting the bitmaps' cursors; ours is the call after that.
    """
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        assert source.cr3 is not None
        symbols = kernel_symbols(source.memory, source.vmcoreinfo)
        tables = PageTables(source.memory, source.cr3, source.levels or 4)

        def read(address: int, size: int) -> bytes:
            data = b""
            while len(data) < size:
                paddr = tables.walk(address + len(data)).paddr
                assert paddr is not None
                page = source.memory.page(paddr >> 12)
                assert page is not None
                data += page[paddr & 0xFFF :].tobytes()[: size - len(data)]
            return data

        wanted = {name: (symbols[name].address, symbols[name].size) for name in ("swsusp_save", "memory_bm_next_pfn")}
        loop = find_copy_loop(read, wanted)
    start = wanted["swsusp_save"][0]
    assert [address - start for address in loop.before] == [0x1C7, 0x1E4]
    assert loop.after - start == 0x2E5


def test_made_code() -> None:
    """The call of memory_bm_next_pfn and the end of the loop are found in code made by hand."""
    assert find(code()) == ((START + 3,), AFTER)


@pytest.mark.parametrize(
    "text",
    [
        code(compare=b"\x48\x83\xf8\x01"),
        code().replace(b"\x74", b"\x75"),
        b"\x90" * 64,
        b"",
    ],
    ids=["another value", "another jump", "no call", "nothing"],
)
def test_other_code_is_refused(text: bytes) -> None:
    """Code without a clear copy loop is refused: a stop in the wrong place gives a dump that looks right."""
    with pytest.raises(HibernautError, match="exits of the copy loop; expected"):
        find(text)


def test_a_kernel_without_the_symbols() -> None:
    """A kernel without the symbol is refused by its name."""
    with pytest.raises(HibernautError, match="no symbol memory_bm_next_pfn"):
        find_copy_loop(lambda _address, _size: b"", {"swsusp_save": (START, 4)})


def test_sizes_come_from_the_next_symbol() -> None:
    """Aliases at the same address are not an end."""
    lines = ["ffffffff81000000 T a", "ffffffff81000000 t b", "ffffffff81000040 T c\t[module]"]
    assert symbols_of(lines) == {
        "a": (0xFFFFFFFF81000000, 0x40),
        "b": (0xFFFFFFFF81000000, 0x40),
        "c": (0xFFFFFFFF81000040, 0),
    }
