# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMCOREINFO of the kernel that a machine runs, among those of other kernels in the same memory.

A host of virtual machines has its guests' texts in RAM, a machine after kexec that of the kernel before, a page cache
that of a vmcore. A text names the root of its kernel's tables (`swapper_pg_dir` at `phys_base`). It is this machine's
if that root and CR3 have the same entry for the kernel's image, in the last slot, which all roots of a kernel share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hibernaut.kernel.restore_entry import data_loaded_at_restore_entry
from hibernaut.kernel.vmcoreinfo_pointers import text_by_pointers
from hibernaut.memory.vmcoreinfo import MUST_HAVE, find_vmcoreinfos, page_table_root, parse_vmcoreinfo, sme_mask
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entry
from hibernaut.paging.tables import PageTables, Stop

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.paging.tables import Walk
    from hibernaut.sources import Source

__all__ = ["OwnVmcoreinfo", "PointedKernel", "choose_vmcoreinfo", "kernel_by_pointers", "with_own_vmcoreinfo"]

Root: TypeAlias = "tuple[int, int | None]"
"""CR3, and levels of paging; None for those that each text has itself: an image records CR3 alone."""
_TABLE = FRAME_MASK | int(Entry.PRESENT)


@dataclass(frozen=True)
class OwnVmcoreinfo:
    """A choice between texts.

    Attributes:
        text: that of the machine's kernel; None if none is known to be.
        others: those of other kernels.
    """

    text: bytes | None
    others: tuple[bytes, ...] = ()

    @property
    def remark(self) -> str | None:
        """A sentence on the texts of other kernels; None if there are none."""
        if not self.others:
            return None
        taken = f"{_release(self.text)} is this machine's" if self.text else "none is known to be this machine's"
        return f"VMCOREINFO of {len(self.others) + bool(self.text)} kernels in memory: {taken}, not " + ", ".join(
            f"{_release(other)} (CR3 {page_table_root(parse_vmcoreinfo(other))[0] or 0:#x})" for other in self.others
        )


def choose_vmcoreinfo(memory: PhysicalMemory, texts: Sequence[bytes], root: Root | None) -> OwnVmcoreinfo:
    """Return the text of the kernel whose root is known.

    Args:
        memory: the memory.
        texts: texts in it, the longest first: a kernel has two copies, of which one may lack the last lines.
        root: CR3 and levels; None if CR3 is unknown. Then the text is chosen whose own root maps itself where the text
            says.
    """
    if root is None and len(texts) < 2:
        return OwnVmcoreinfo(texts[0] if texts else None)
    answers = [_maps_itself(memory, text) if root is None else _is_own(memory, text, *root) for text in texts]
    for wanted in (True, None):
        chosen = [text for text, answer in zip(texts, answers, strict=True) if answer is wanted]
        kernels = {_root_of(text) for text in chosen}
        if len(kernels) == 1:
            (kernel,) = kernels
            return OwnVmcoreinfo(chosen[0], _one_each([text for text in texts if _root_of(text) != kernel]))
        if kernels:
            break
    return OwnVmcoreinfo(None, _one_each(texts))


def with_own_vmcoreinfo(source: Source, root: Root | None = None) -> tuple[Source, OwnVmcoreinfo]:
    """Return a source with the VMCOREINFO of its machine's kernel, and the choice; `root` as for `choose_vmcoreinfo`.

    A note of the file that is another kernel's is replaced by a text in memory. Without any, `Source.vmcoreinfo` of
    the result is empty, and is not looked for again. Reads all pages, unless the file has the right note.
    """
    if source.vmcoreinfo == b"":  # it was looked for already
        return source, OwnVmcoreinfo(None)
    noted = choose_vmcoreinfo(source.memory, [source.vmcoreinfo] if source.vmcoreinfo else [], root)
    if noted.text:
        return source, noted
    found = choose_vmcoreinfo(source.memory, find_vmcoreinfos(source.memory), root)
    others = _one_each((*noted.others, *found.others))
    return replace(source, vmcoreinfo=found.text or b""), OwnVmcoreinfo(found.text, others)


@dataclass(frozen=True)
class PointedKernel:
    """The kernel of a known root, by its own variables.

    Attributes:
        text: its VMCOREINFO.
        cr3: the root, as given.
        levels: levels of paging.
        direct_map_base: see `PointedText`.
    """

    text: bytes
    cr3: int
    levels: int
    direct_map_base: int | None


def kernel_by_pointers(source: Source, root: Root | None = None) -> PointedKernel | None:
    """Return the kernel of a source by the variables that lead to its VMCOREINFO; None if they are not found.

    A small part of memory is read. The text is one that `choose_vmcoreinfo` takes for this root.

    Args:
        source: the memory.
        root: as for `choose_vmcoreinfo`; that of the source if None.

    Raises:
        HibernautError, OSError: the source cannot be read.
    """
    cr3, levels = (source.cr3, source.levels) if root is None else root
    if cr3 is None or source.foreign is not None:
        return None
    below = data_loaded_at_restore_entry(source)
    for number in (4, 5) if levels is None else (levels,):
        found = text_by_pointers(source.memory, cr3, number, below)
        if found is not None and choose_vmcoreinfo(source.memory, [found.text], (cr3, number)).text:
            return PointedKernel(found.text, cr3, number, found.direct_map_base)
    return None


def _one_each(texts: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the first text of each kernel."""
    return tuple({_root_of(text): text for text in reversed(texts)}.values())[::-1]


def _release(text: bytes | None) -> str:
    return parse_vmcoreinfo(text or b"").get("OSRELEASE", "a kernel without a release")


def _root_of(text: bytes) -> tuple[int | None, int | None]:
    return page_table_root(parse_vmcoreinfo(text))


def _is_own(memory: PhysicalMemory, text: bytes, cr3: int, levels: int | None) -> bool | None:
    """Return whether a text is that of the kernel with this root; None if memory lacks what decides it."""
    theirs, own_levels = _root_of(text)
    levels = levels or own_levels
    if theirs is None or levels is None:
        return None
    pages = [memory.page(root >> 12) for root in (theirs, cr3 & FRAME_MASK)]
    if pages[1] is None:
        return None
    if pages[0] is not None:
        last = [int(page.view(np.uint64)[ENTRIES - 1]) & _TABLE for page in pages if page is not None]
        return last[0] == last[1] and bool(last[0] & Entry.PRESENT)
    # Its root is not in memory: at least its address has to be where these tables have it.
    walk = _walk(memory, text, cr3, levels)
    return None if walk.stop == Stop.TABLE_MISSING or walk.paddr == theirs else False


def _maps_itself(memory: PhysicalMemory, text: bytes) -> bool:
    """Return whether the root that a text names maps its own address, in the kernel's image, to itself."""
    root, levels = _root_of(text)
    if root is None or levels is None:
        return False
    return _walk(memory, text, root, levels).paddr == root


def _walk(memory: PhysicalMemory, text: bytes, cr3: int, levels: int) -> Walk:
    """Look the address of a text's `swapper_pg_dir` up."""
    facts = parse_vmcoreinfo(text)
    return PageTables(memory, cr3, levels, sme_mask(facts)).walk(int(facts[MUST_HAVE], 16) % (1 << 64))
