# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine in a dump or an image, ready to hibernate: page tables, list of pages, rules of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.hibernation.real_kernel import rules_of_source
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.own_vmcoreinfo import with_own_vmcoreinfo
from hibernaut.kernel.suspend import PagesToSave, pages_to_save, secret_users
from hibernaut.kernel_line import Probed
from hibernaut.linux.rules import RULE_NAMES, KernelRules
from hibernaut.linux.source_tables import find_paging, paging_of_raw
from hibernaut.memory.page import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hibernaut.linux.environment import Environment
    from hibernaut.linux.machine import Machine
    from hibernaut.linux.source_tables import Paging
    from hibernaut.sources import Source
    from hibernaut.swsusp import Image
    from hibernaut.swsusp.salvage import SalvagedImage

__all__ = ["MachineInSource", "machine_in", "refuse_other_machine"]

CR3_FRAME_MASK = ~0xFFF
"""Without the PCID in its low bits."""


@dataclass(frozen=True, eq=False)
class MachineInSource:
    """A machine and the origin of what it was made with.

    Attributes:
        machine: the machine, on a copy-on-write overlay of the source.
        pages: its list of pages to save, and the list's origin.
        rules: the rules of its kernel, and whether they were given, probed, or those of a kernel line.
        remarks: contradictions and substitutes that a user must hear of, a sentence each.
        source: the source, raw memory with its gaps put back.
        paging: the page tables of the source.
    """

    machine: Machine
    pages: PagesToSave
    rules: Probed[KernelRules]
    remarks: tuple[str, ...]
    source: Source
    paging: Paging


def machine_in(
    source: Source,
    *,
    pages_from: Image | None = None,
    cr3: int | None = None,
    levels: int | None = None,
    rules: KernelRules | None = None,
    environment: Environment | None = None,
    secretmem: bool = True,
) -> MachineInSource:
    """Return the machine in a source. The source is never written and must stay open.

    Args:
        source: a dump or an image.
        pages_from: an image of the same machine with the list of pages to save. Default: the list of the source if it
            is an image; that of its kernel if that was stopped in `swsusp_save`; else all frames that the
            direct map has an entry for.
        cr3: physical address of the root of the page tables. Default: see `find_paging`.
        levels: levels of paging, 4 or 5. Default: see `find_paging`.
        rules: of its kernel. Default: those of the kernel in the source, see `rules_of_source`.
        environment: answers every choice; by default nothing fails.
        secretmem: whether the machine knows of its open files of secret memory (`memfd_secret`), for which its kernel
            refuses to hibernate; False to model the copy all the same.

    Raises:
        FormatError: no page tables are found, or the image is of another machine.
        HibernautError: a page on the list is not in the source.
    """
    source.require_x86_64()
    told = cr3 is not None or bool(source.root_hints)
    paging = find_paging(source, cr3, levels) if told else paging_of_raw(source, levels)
    if paging is not None:
        source = paging.source or source
    source, own = with_own_vmcoreinfo(source, None if paging is None else paging.root_and_levels)
    if pages_from is not None:
        pages_from.require_x86_64()
        refuse_other_machine(source, pages_from)
        pages = PagesToSave("image", pages_from.pfns, pages_from.info)
    else:
        pages = pages_to_save(source)
    if not told and pages.kernel is not None:
        paging = find_paging(source, pages.kernel.info.cr3, levels or pages.kernel.levels)
    elif paging is None:
        paging = find_paging(source, levels=levels)
    found = Probed(rules, (), RULE_NAMES) if rules is not None else rules_of_source(source)
    machine = machine_from_memory(
        source.memory,
        paging.cr3,
        paging.levels,
        saveable=pages.pfns,
        environment=environment,
        rules=found.rules,
        direct_map=paging.direct_map,
        encryption=paging.encryption,
    )
    if secretmem:
        machine.secretmem_users = secret_users(source.memory, source.vmcoreinfo) or 0
    remarks = (
        *filter(None, (*paging.remarks, own.remark)),
        *_remarks(source, pages_from or source.any_image, pages, found, paging.cr3),
    )
    return MachineInSource(machine, pages, found, remarks, source, paging)


def refuse_other_machine(source: Source, image: Image) -> None:
    """Compare the page at the restore entry, kernel code that never changes after boot, in both.

    Raises:
        FormatError: it differs, so the image is of another machine or of another boot.
    """
    if image.info.jump_address_phys is None:  # of a kernel that does not store it
        return
    pfn = image.info.jump_address_phys >> PAGE_SHIFT
    theirs, ours = image.memory().page(pfn), source.memory.page(pfn)
    if theirs is not None and ours is not None and not np.array_equal(theirs, ours):
        raise FormatError(
            f"not an image of the machine in {source.name}: the kernel's code in frame {pfn:#x} differs",
            source=image.name,
            advice="give an image that this machine wrote before its next boot",
        )


def _remarks(
    source: Source, image: Image | SalvagedImage | None, pages: PagesToSave, rules: Probed[KernelRules], root: int
) -> Iterator[str]:
    name = image.name if image else source.name
    noted = pages.info.root if pages.info else None
    if noted is not None and noted != root & CR3_FRAME_MASK:
        yield f"CR3 is {root:#x} in {source.name} but {noted:#x} in {name}: the same machine?"
    if pages.kernel is not None:
        yield f"list of {len(pages.kernel.pfns)} pages: that of the kernel in {name}, {pages.kernel.release}"
    if pages.reason is not None:
        yield f"list of pages: every page that the direct map has an entry for ({pages.reason})"
    if rules.reason not in (None, pages.reason):
        yield f"rules: those of kernel line {rules.rules.line} ({rules.reason})"
