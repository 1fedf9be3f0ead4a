# SPDX-License-Identifier: GPL-2.0-or-later
"""A BTF that is read as far as it is asked for answers as one that is read at once, and reads less."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.kernel import btf_parts
from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.kernel.btf_layouts import member_offsets
from hibernaut.kernel.btf_parts import GrowingBtf
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.kernel.test_btf import Writer, some_types

STRUCTURES = ("task_struct", "pt_regs", "list_head", "xa_node", "saved_context", "page", "module", "no_such_structure")
CORE = ("task_struct", "pt_regs", "pid_namespace", "pid")
"""Structures among the first types of every kernel: those of its first source files."""


class Read:
    """The bytes of a BTF, of which those that are read are noted.

    Attributes:
        places: the bytes read so far.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.places: set[int] = set()

    def __call__(self, start: int, size_bytes: int) -> bytes:
        """Return bytes of it."""
        assert 0 <= start < start + size_bytes <= len(self._content)
        self.places.update(range(start, start + size_bytes))
        return self._content[start : start + size_bytes]


@pytest.fixture(autouse=True)
def _small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that hand-written types need many; those of real kernels are read as they are."""
    if "golden" not in request.fixturenames:
        monkeypatch.setattr(btf_parts, "PIECE_BYTES", 32)
        monkeypatch.setattr(btf_parts, "FEW_BYTES", 256)
        monkeypatch.setattr(btf_parts, "LARGE_PIECE_BYTES", 64)
        monkeypatch.setattr(btf_parts, "PAGE_SIZE", 16)


def answers(btf: Btf, number: int) -> list[Any]:
    """Return the answers to all questions on a type; the name of the error where one is refused."""
    questions: tuple[Callable[[int], Any], ...] = (
        *(btf.kind, btf.name, btf.target, btf.stripped, btf.size_bytes, btf.members, btf.enumerators, btf.parameters),
        *(btf.array, btf.integer, btf.is_signed, btf.forwards_union, lambda one: member_offsets(btf, one)),
    )
    found: list[Any] = []
    for question in questions:
        try:
            found.append(question(number))
        except FormatError as error:
            found.append(str(error))
    return found


def growing(content: bytes) -> GrowingBtf:
    """Return types that are read on demand."""
    return GrowingBtf(Read(content), len(content))


def test_every_answer_is_that_of_the_whole() -> None:
    """By number in any order, by name, by enumerator, by members; and for what there is not."""
    content = some_types().content()
    whole = Btf(content)
    for number in [*range(whole.end + 2), *range(whole.end, 0, -1)]:
        assert answers(growing(content), number) == answers(whole, number)
    for name in ("outer", "RED", "number_t", "callee", "per_cpu", "inner", "nner", "none"):
        for kind in BtfKind:
            assert list(growing(content).find_each(name, kind)) == whole.find(name, kind)
            assert growing(content).find(name, kind) == whole.find(name, kind)
        assert growing(content).find_enumerator(name) == whole.find_enumerator(name)
    for members in (frozenset({"x", ""}), frozenset({"a", "b"}), frozenset()):
        assert growing(content).find_anonymous(members) == whole.find_anonymous(members)
    parts = growing(content)
    assert (parts.end, parts.strings_end, len(parts)) == (whole.end, whole.strings_end, len(whole))
    assert (bytes(parts.raw[0]), parts.raw[1]) == (bytes(whole.raw[0]), whole.raw[1])
    assert parts.kinds.tolist() == whole.kinds.tolist()
    assert growing(content).numbers(BtfKind.STRUCT) == whole.numbers(BtfKind.STRUCT)
    assert growing(content).names(BtfKind.STRUCT) == whole.names(BtfKind.STRUCT)


def test_a_modules_types_continue_it() -> None:
    """A module's BTF counts types and strings from the end of the whole, however little of it was read."""
    content = some_types().content()
    whole, parts = Btf(content), growing(content)
    assert next(parts.find_each("int", BtfKind.INT)) == 1
    w = Writer(first_string=whole.strings_end)
    w.add(BtfKind.STRUCT, "of_module", 8, w.text("a"), 7, 0, length=1)
    module = Btf(w.content(), parts)
    assert (module.first, module.members(module.first)) == (whole.end, Btf(w.content(), whole).members(whole.end))
    assert module.find("outer", BtfKind.STRUCT) == [7]
    assert module.find_enumerator("BLUE") == whole.find_enumerator("BLUE")


def test_the_first_types_are_found_without_the_rest() -> None:
    """The first type and the first enumerator need neither the last record nor the last string."""
    w = some_types()
    for number in range(64):
        w.add(BtfKind.STRUCT, f"filler{number}", 0)
    content = w.content()
    questions: tuple[Callable[[Btf], object], ...] = (
        lambda btf: next(btf.find_each("int", BtfKind.INT)),
        lambda btf: btf.members(5),
        lambda btf: btf.find_enumerator("RED"),
    )
    for question in questions:
        read = Read(content)
        assert question(GrowingBtf(read, len(content)))
        assert len(content) - 1 not in read.places
        assert 24 + len(w.types) - 1 not in read.places
        assert len(read.places) < len(content) / 2


def test_of_two_types_with_a_name_the_first_comes_first() -> None:
    """Though a string lies behind that of a later type, and though names share a tail."""
    w = Writer()
    w.add(BtfKind.STRUCT, "long_pair", 4)
    w.add(BtfKind.UNION, "pair", 8)
    for number in range(20):
        w.add(BtfKind.STRUCT, f"filler{number}", 0)
    w.add(BtfKind.STRUCT, "pair", 12)
    w.add(BtfKind.STRUCT, "pair", 16)
    w.types += (1 + len("long_")).to_bytes(4, "little") + (BtfKind.STRUCT << 24).to_bytes(4, "little") + bytes(4)
    content = w.content()
    assert list(growing(content).find_each("pair", BtfKind.STRUCT)) == [23, 24, 25]
    assert list(growing(content).find_each("pair", BtfKind.STRUCT)) == Btf(content).find("pair", BtfKind.STRUCT)
    assert next(growing(content).find_each("pair", BtfKind.STRUCT, BtfKind.UNION)) == 2


@given(
    flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 40),
)
def test_damage_is_refused_or_read_as_the_whole_is(flips: list[tuple[int, int]], cut: int) -> None:
    """Whatever is changed: what is refused at once is refused at the latest when all is read, and no answer differs."""
    damaged = bytearray(some_types().content())
    for at, value in flips:
        damaged[at % len(damaged)] = value
    content = bytes(damaged[: len(damaged) - cut])
    try:
        whole = Btf(content)
    except FormatError:
        with pytest.raises(FormatError):
            len(growing(content))
        with contextlib.suppress(FormatError):
            list(growing(content).find_each("outer", BtfKind.STRUCT))
        return
    for number in range(whole.end + 1):
        assert answers(growing(content), number) == answers(whole, number)
    assert list(growing(content).find_each("outer", BtfKind.STRUCT)) == whole.find("outer", BtfKind.STRUCT)
    for name in ("RED", "FAR"):
        assert refusal_or(growing(content).find_enumerator, name) == refusal_or(whole.find_enumerator, name)


def refusal_or(question: Callable[[str], Any], name: str) -> Any:
    """Return an answer, or the refusal of it."""
    try:
        return question(name)
    except FormatError as error:
        return str(error)


def test_a_part_that_cannot_be_read_refuses_what_needs_it() -> None:
    """The first types are found; the last ones, and that there is none, are refused, each time anew."""
    content = some_types().content()

    def read(start: int, size_bytes: int) -> bytes:
        if start + size_bytes > 200 and start < 24 + len(some_types().types):
            raise FormatError("not in memory")
        return content[start : start + size_bytes]

    btf = GrowingBtf(read, len(content))
    assert next(btf.find_each("int", BtfKind.INT)) == 1
    for _ in range(2):
        with pytest.raises(FormatError, match="not in memory"):
            btf.kind(21)
        with pytest.raises(FormatError, match="not in memory"):
            list(btf.find_each("no_such_type", BtfKind.STRUCT))
        with pytest.raises(FormatError, match="not in memory"):
            btf.find_enumerator("no_such_enumerator")
    assert btf.kind(1) == BtfKind.INT


def test_several_threads_read_it_at_once() -> None:
    """Each has the answers of the whole."""
    w = some_types()
    for number in range(500):
        w.add(BtfKind.STRUCT, f"filler{number}", number)
    content = w.content()
    whole, parts = Btf(content), growing(content)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: list(parts.find_each(f"filler{number}", BtfKind.STRUCT)), range(500)))
    assert found == [whole.find(f"filler{number}", BtfKind.STRUCT) for number in range(500)]


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def test_real_kernels(golden: Golden, name: str) -> None:
    """Structures, with all their members, and enumerators; those of the kernel's core in a tenth of the pages."""
    with open_memory(golden(name)) as source:
        kernel = SymbolicKernel(source.memory, find_vmcoreinfo(source.memory))
        start, stop = (kernel.symbols[symbol].address for symbol in ("__start_BTF", "__stop_BTF"))
        content = kernel.read(start, stop - start, "BTF")
    whole, read = Btf(content), Read(content)
    parts = GrowingBtf(read, len(content))
    for structure in CORE:
        (number,) = whole.find(structure, BtfKind.STRUCT)
        assert next(parts.find_each(structure, BtfKind.STRUCT)) == number
        assert parts.members(number) == whole.members(number)
    assert len({at // PAGE_SIZE for at in read.places}) < len(content) / PAGE_SIZE / 10
    for structure in STRUCTURES:
        assert list(parts.find_each(structure, BtfKind.STRUCT)) == whole.find(structure, BtfKind.STRUCT)
    for enumerator in ("PIDTYPE_PID", "NR_FREE_PAGES", "SWP_USED", "no_such_enumerator"):
        assert parts.find_enumerator(enumerator) == whole.find_enumerator(enumerator)
    assert (bytes(parts.raw[0]), parts.raw[1]) == (bytes(whole.raw[0]), whole.raw[1])
