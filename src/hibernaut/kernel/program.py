# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn's view of a kernel in memory: a `Program` that reads in place and has the kernel's own symbols and types."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from hibernaut.errors import FormatError, HibernautError, how_to_install
from hibernaut.kernel.btf_finders import BtfFinders
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.kernel.symbols_for_drgn import symbol_finder
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.paging.tables import Stop
from hibernaut.swsusp.declarations import MAX_PFN

if TYPE_CHECKING:
    from typing import Any

T = TypeVar("T")

__all__ = ["ask", "drgn_program", "each"]

KERNEL_HALF = 1 << 63
"""First address of the upper half: kernel space, canonical from 0xffff800000000000 or 0xff00000000000000 on."""
KEPT_PAGES = 8192
ADDRESSES = 1 << 64


def drgn_program(kernel: SymbolicKernel) -> Any:
    """Return a drgn `Program` on a kernel's memory: kernel space, physical memory, all symbols, and types by BTF.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: drgn refuses the kernel's VMCOREINFO.
    """
    try:
        import drgn

        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        set_kernel = program.set_linux_kernel_custom
    except (ImportError, AttributeError):
        raise HibernautError(
            "drgn 0.1 or newer, which reads a kernel's objects, is not installed",
            advice=f"try: {how_to_install('drgn')}",
        ) from None
    frames = _Pages(lambda pfn: _frame(kernel, pfn), kernel.reads.count)
    virtual = _Pages(lambda page: _kernel_page(kernel, page), kernel.reads.count)
    try:
        set_kernel(_with_places(kernel), is_live=False)
        program.add_memory_segment(0, (MAX_PFN + 1) << PAGE_SHIFT, frames, physical=True)
        program.add_memory_segment(KERNEL_HALF, ADDRESSES - KERNEL_HALF, virtual, physical=False)
    except Exception as error:  # drgn's errors share no narrower base
        raise kernel.damaged(f"drgn does not take it for a kernel: {' '.join(str(error).split())}") from error
    program.register_symbol_finder("hibernaut", symbol_finder(kernel), enable_index=0)
    if kernel.btf is not None:
        finders = BtfFinders(program, kernel, kernel.btf)
        program.register_type_finder("hibernaut", finders.find_type, enable_index=0)
        program.register_object_finder("hibernaut", finders.find_object, enable_index=0)
    return program


def ask(kernel: SymbolicKernel, what: str, question: Callable[..., T], *arguments: object) -> T:
    """Return the answer to a question that reads objects through drgn.

    Args:
        kernel: the kernel.
        what: name of the object, for the error.
        question: reads it.
        arguments: arguments of the question.

    Raises:
        FormatError: memory that it reads is absent, or a type, member or variable is unknown to this kernel; or it
            reads without an end.
    """
    import drgn

    try:
        with kernel.reads.question():
            return question(*arguments)
    except drgn.FaultError as error:
        raise kernel.damaged(f"{what}: nothing to read at {error.address:#x}: {error.message}") from error
    except (LookupError, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise kernel.damaged(f"{what} cannot be read: {' '.join(str(error).split())}") from error


def each(kernel: SymbolicKernel, what: str, objects: Iterable[T], limit: int) -> Iterator[T]:
    """Yield the objects of a list of the kernel's; to find each of them is a question of its own.

    Args:
        kernel: the kernel.
        what: name of the list, for the error.
        objects: finds them, through drgn.
        limit: most objects.

    Raises:
        FormatError: as `ask`; or there are more than `limit`.
    """
    found = iter(objects)
    nothing = object()
    for _ in range(limit):
        one = ask(kernel, what, next, found, nothing)
        if one is nothing:
            return
        yield one
    raise kernel.damaged(f"{what}: there are more than {limit}")


def _with_places(kernel: SymbolicKernel) -> bytes:
    """Return the text of VMCOREINFO, with the location of kallsyms."""
    if "SYMBOL(kallsyms_num_syms)" in kernel.facts:
        return kernel.vmcoreinfo
    lines = "".join(f"SYMBOL(kallsyms_{name})={place:x}\n" for name, place in kallsyms_places(kernel).items())
    return kernel.vmcoreinfo.rstrip(b"\0\n") + b"\n" + lines.encode()


def _frame(kernel: SymbolicKernel, pfn: int) -> bytes | None:
    page = kernel.memory.page(pfn)
    return None if page is None else page.tobytes()


def _kernel_page(kernel: SymbolicKernel, page: int) -> bytes | None:
    walk = kernel.tables.walk(page << PAGE_SHIFT)
    return _frame(kernel, walk.pfn) if walk.stop == Stop.PRESENT and walk.pfn is not None else None


class _Pages:
    """Callback by which drgn reads memory, mostly a few bytes at a time: the pages read last are kept.

    Args:
        page: returns a page by its number, None if there is none.
        count: called for each read.
    """

    def __init__(self, page: Callable[[int], bytes | None], count: Callable[[], None]) -> None:
        self._page = page
        self._count = count
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        self._count()
        within = address & (PAGE_SIZE - 1)
        if within + count <= PAGE_SIZE:
            return self._of(address >> PAGE_SHIFT, address)[within : within + count]
        end = address + count
        numbers = range(address >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT)
        pages = b"".join(self._of(number, max(address, number << PAGE_SHIFT)) for number in numbers)
        return pages[within : within + count]

    def _of(self, number: int, address: int) -> bytes:
        import drgn

        with self._lock:
            page = self._kept.get(number, b"")
            if page:
                self._kept.move_to_end(number)
        if page == b"":
            try:
                page = self._page(number)
            except FormatError as error:  # a damaged unit of an image
                raise drgn.FaultError(str(error), address) from error
            with self._lock:
                self._kept[number] = page
                if len(self._kept) > KEPT_PAGES:
                    self._kept.popitem(last=False)
        if page is None:
            raise drgn.FaultError("not in memory", address)
        return page
