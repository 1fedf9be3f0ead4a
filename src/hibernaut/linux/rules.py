# SPDX-License-Identifier: GPL-2.0-or-later
"""Behaviour of the kernel's mm that differs between kernels: one value for each line, and probes for a real kernel.

Nothing else in this room asks for a version. Where a real kernel is at hand, `rules_probed` finds its rules by what it
has, since distributions backport; `rules_for_release` is for simulated machines, and the fallback.

The line 6.13-rc is historical: its candidates took 2 MiB blocks out of the direct map for executable memory, and
resume from hibernation broke (Message-ID Z4QM_RFfhNX_li_C@intel.com). A line's values are those of its last point
releases, as far as that was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from hibernaut.errors import FormatError
from hibernaut.kernel_line import LineTable, Probe, Probed, ProbedKernel, answers_of
from hibernaut.paging.entries import Entry

__all__ = [
    "LINES",
    "PROBES",
    "RULES",
    "RULE_NAMES",
    "KernelRules",
    "rules_for_release",
    "rules_named",
    "rules_probed",
]

_PRESENT_RW = int(Entry.PRESENT | Entry.RW)
_DIRTY = int(Entry.DIRTY)


@dataclass(frozen=True)
class KernelRules:
    """Behaviour of a kernel.

    Functions are in arch/x86/mm/pat/set_memory.c where no file is named.

    Attributes:
        line: The name of the kernel line; `LINE with A, B without C` for a probed kernel that differs from its line.
            Read in kernel_line.py: names of lines.
        invalid_clears_dirty: `__set_pages_np` (set_direct_map_invalid_noflush) clears DIRTY besides PRESENT and RW.
            Since Linux kernel commit c1fcf41cf37f ("x86/mm: Clear _PAGE_DIRTY for kernel mappings when we clear
            _PAGE_RW") (in v6.15), it does; the series 6.6, 6.12 and 6.13 got it by backport (Message-ID
            20250423142644.949341713@linuxfoundation.org for 6.6). Read in linux-source-6.12 6.12.118-1: it is there;
            in linux-source-6.1 6.1.192-2: it is not.
        ro_clears_dirty: `set_memory_ro` and `set_memory_rox` clear DIRTY besides RW.
            Since Linux kernel commit f788b71768ff ("x86/mm: Remove _PAGE_DIRTY from kernel RO pages") (in v6.6), they
            do. The probe is a function that came with ae1f05a617dc ("x86/mm: Warn if create Write=0,Dirty=1 with raw
            prot"), of the same series.
        has_set_direct_map_valid_noflush: One request changes n pages of the direct map, rather than one page a call.
            Since Linux kernel commit 0c6378a71574 ("arch: introduce set_direct_map_valid_noflush()") (in v6.13), it
            can.
        has_set_memory_rox: There is `set_memory_rox`.
            Since Linux kernel commit 60463628c9e0 ("x86/mm: Implement native set_memory_rox()") (in v6.2), there is.
        collapses_large_pages: `set_memory_rox` turns 4K entries into a large one where they allow it
            (`cpa_collapse_large_pages`), and `set_memory_4k` marks entries so that it does not.
            Since Linux kernel commit 41d88484c71c ("x86/mm/pat: restore large ROX pages after fragmentation")
            (in v6.15), they do.
        alias_keeps_nx: A change of the other mapping of the same frames leaves NX alone (`cpa_process_alias`).
            Since Linux kernel commit d597416683d5 ("x86/mm: Inhibit _PAGE_NX changes from cpa_process_alias()")
            (in v6.2), it does; before, a request that changes NX alone does not touch the other mapping.
        noalias_is_primary: A request that checks no aliases fails where there is no entry outside the direct map.
            Since Linux kernel commit ef9ab81af6e1 ("x86/mm: Untangle __change_page_attr_set_clr(.checkalias)")
            (in v6.2), it does; before, such a request counted as one for an alias, and succeeded.
        detects_wx: `verify_rwx` warns of a page that becomes writable and executable.
            Since Linux kernel commit ebaf7c9bbb1e ("x86/mm/pat: Fix effective RW computation in
            lookup_address_in_pgd_attr()") (in v7.3), it does; before, a bool is and-ed with bit 1, so that every
            address seems to be write-protected by the levels above. Read in linux-source-7.2 7.2.12-1~bpo13+1,
            linux-source-6.12 6.12.118-1 and linux-source-6.1 6.1.192-2: not there.
        inverts_not_present: Bits 12-51 of a not-present entry are stored inverted
            (arch/x86/include/asm/pgtable-invert.h).
            Since Linux kernel commit 6b28baca9b1f ("x86/speculation/l1tf: Protect PROT_NONE PTEs against speculation")
            (in v4.19), they are.
        kfence_inverts: `kfence_protect_page` (arch/x86/include/asm/kfence.h) writes a not-present entry with its frame
            inverted, as `pfn_pte` does.
            Since Linux kernel commit b505f1944535 ("x86/kfence: avoid writing L1TF-vulnerable PTEs") (in v6.19), it
            does; before, it cleared PRESENT and left the frame as it was. The series 6.1 and 6.12 got it by
            backport: read in linux-source-6.1 6.1.192-2 and linux-source-6.12 6.12.118-1, it is there. 6.6, not read,
            is taken to be like both its neighbours.
        checks_null_pte: `kernel_page_present` takes no entry for "not present" instead of reading through NULL.
            Read in linux-source-5.10 5.10.262-1, linux-source-6.1 6.1.192-2, linux-source-6.12 6.12.118-1,
            linux-source-7.2 7.2.12-1~bpo13+1 and linux-source-7.3 7.3.4-1~bpo13+1: none does.
        checks_secretmem: `hibernation_available` (kernel/power/hibernate.c) refuses while memfd_secret memory exists.
            Since Linux kernel commit 9a436f8ff631 ("PM: hibernate: disable when there are active secretmem users")
            (in v5.14), it does.
        skips_zero_pages: `copy_data_pages` (kernel/power/snapshot.c) notes a page of zeroes, and keeps no copy of it.
            Since Linux kernel commit 005e8dddd497 ("PM: hibernate: don't store zero pages in the image file")
            (in v6.6), it does.
        prints_zero_count: "Image created" counts pages of zeroes (`swsusp_save`, kernel/power/snapshot.c).
            Since Linux kernel commit 005e8dddd497 ("PM: hibernate: don't store zero pages in the image file")
            (in v6.6), it does.
        prints_progress: `swsusp_save` prints its progress without pm_debug_messages.
            Since Linux kernel commit d3db87f89c71 ("PM: hibernate: Rework message printing in swsusp_save()")
            (in v6.19), it does not: `pm_deferred_pr_dbg` took the place of `pr_info`.
        execmem_unmaps_2m: `execmem_cache_populate` (mm/execmem.c) takes whole 2 MiB blocks out of the direct map.
            Since Linux kernel commit 5185e7f9f3bd ("x86/module: enable ROX caches for module text on 64 bit")
            (in v6.13-rc1), it did; a9bbe3413331 ("x86: Disable EXECMEM_ROX support") (in v6.13) disabled it, and when
            it came back, 925f42645118 ("execmem: don't remove ROX cache from the direct map") (in v6.15) had changed
            that.
        set_direct_map_takes_pages: `set_direct_map_invalid_noflush` and `set_direct_map_default_noflush` take a number
            of pages.
            Proposed in the mm tree, 2026: "set_memory: add number of pages parameter to set_direct_map APIs" (Mike
            Rapoport; branch execmem/set-vm-perms/v0.2 of git.kernel.org/pub/scm/linux/kernel/git/rppt/linux, no
            Message-ID was read). The series reverts `set_direct_map_valid_noflush`, which the new form replaces.
            `hibernate_map_page` asks for one page by either.
        resets_huge_vmalloc: `set_area_direct_map` (mm/vmalloc.c) changes the pages of a huge page of an area by one
            request, so that 2 MiB become one not-present entry while translations of the area are flushed.
            Proposed in the mm tree, 2026: "mm/vmalloc: make set_area_direct_map HUGE_VMAP friendly" (as above).
        has_unmapped_pageblocks: Free lists have a type whose pageblocks are not in the direct map, and an allocation
            that finds nothing else maps such a block again.
            Proposed in Message-ID 20260225-page_alloc-unmapped-v1-0-e8808a03cd66@google.com (ALLOC_UNMAPPED), later
            versions 20260320-page_alloc-unmapped-v2-0-28bf1bd54f41@google.com and
            20260726-page_alloc-unmapped-v3-0-6f5729aa9832@google.com; see `unmapped` for what of them was read.

    Left out, since it changes nothing that hibernation sees: the patches of 2026 for CPA that reach point releases
    ("x86/mm/pat: Don't gate cpa_lock on debug_pagealloc_enabled()", "Acquire init_mm read lock on attribute changes to
    avoid UAF", "Convert split_large_page() to use ptdescs", "Allocate split page tables as kernel page tables"). They
    take locks, of which none is contended with one CPU and interrupts off, and change how the page of a table is
    allocated and typed, not when, nor what is written to which entry. The read lock is taken by
    `change_page_attr_set_clr`, which `set_direct_map_*` do not pass.
    """

    line: str
    invalid_clears_dirty: bool = False
    ro_clears_dirty: bool = False
    has_set_direct_map_valid_noflush: bool = False
    has_set_memory_rox: bool = False
    collapses_large_pages: bool = False
    alias_keeps_nx: bool = False
    noalias_is_primary: bool = False
    detects_wx: bool = False
    inverts_not_present: bool = True
    kfence_inverts: bool = False
    checks_null_pte: bool = False
    checks_secretmem: bool = True
    skips_zero_pages: bool = False
    prints_zero_count: bool = False
    prints_progress: bool = True
    execmem_unmaps_2m: bool = False
    set_direct_map_takes_pages: bool = False
    resets_huge_vmalloc: bool = False
    has_unmapped_pageblocks: bool = False

    @property
    def invalid_clears(self) -> int:
        """The bits that set_direct_map_invalid_noflush clears."""
        return _PRESENT_RW | _DIRTY if self.invalid_clears_dirty else _PRESENT_RW

    @property
    def ro_clears(self) -> int:
        """The bits that set_memory_ro clears."""
        return int(Entry.RW) | _DIRTY if self.ro_clears_dirty else int(Entry.RW)


_6_1 = KernelRules("6.1", kfence_inverts=True)
_6_2 = replace(
    _6_1, line="6.2", kfence_inverts=False, has_set_memory_rox=True, alias_keeps_nx=True, noalias_is_primary=True
)
_6_6 = replace(
    _6_2,
    line="6.6",
    invalid_clears_dirty=True,
    kfence_inverts=True,
    ro_clears_dirty=True,
    skips_zero_pages=True,
    prints_zero_count=True,
)
_6_12 = replace(_6_6, line="6.12")
_6_13_RC = replace(
    _6_12,
    line="6.13-rc",
    invalid_clears_dirty=False,
    kfence_inverts=False,
    has_set_direct_map_valid_noflush=True,
    execmem_unmaps_2m=True,
)
_6_13 = replace(_6_13_RC, line="6.13", invalid_clears_dirty=True, execmem_unmaps_2m=False)
_6_15 = replace(_6_13, line="6.15", collapses_large_pages=True)
_6_19 = replace(_6_15, line="6.19", kfence_inverts=True, prints_progress=False)
_7_3 = replace(_6_19, line="7.3", detects_wx=True)

RULES: LineTable[KernelRules] = LineTable(
    {rules.line: rules for rules in (_6_1, _6_2, _6_6, _6_12, _6_13_RC, _6_13, _6_15, _6_19, _7_3)}
)
"""The rules of each line in which something changed."""

LINES: tuple[KernelRules, ...] = (_6_1, _6_6, _6_12, _6_13_RC, _6_15, _7_3)
"""The lines offered by name, oldest first. 6.2, 6.13 and 6.19 differ from their neighbours in one or two rules."""

RULE_NAMES = tuple(field.name for field in fields(KernelRules) if field.name != "line")
"""The flags of `KernelRules`, in its order."""
_NAME = re.compile(r"(\S+)(?: with ([a-z0-9_]+(?:, [a-z0-9_]+)*))?(?: without ([a-z0-9_]+(?:, [a-z0-9_]+)*))?")
"""`6.12`, or a probed kernel's: `6.12 with collapses_large_pages without prints_progress`."""


def _execmem_unmaps_2m(kernel: ProbedKernel) -> bool | None:
    """Tell the first form of the cache from the one that came back, which has `execmem_restore_rox`."""
    cache, later = kernel.has_function("execmem_cache_clean"), kernel.has_function("execmem_restore_rox")
    return None if cache is None or later is None else cache and not later


def _collapses_large_pages(kernel: ProbedKernel) -> bool | None:
    """Answer yes if there is `collapse_large_pages`; None if not, since it is static and may be inlined."""
    return kernel.has_function("collapse_large_pages") or None


PROBES: Mapping[str, Probe] = {
    "ro_clears_dirty": lambda kernel: kernel.has_function("arch_check_zapped_pte"),
    "has_set_direct_map_valid_noflush": lambda kernel: kernel.has_function("set_direct_map_valid_noflush"),
    "has_set_memory_rox": lambda kernel: kernel.has_function("set_memory_rox"),
    "collapses_large_pages": _collapses_large_pages,
    "inverts_not_present": lambda kernel: kernel.has_function("pfn_modify_allowed"),
    "checks_secretmem": lambda kernel: kernel.has_function("secretmem_active"),
    "skips_zero_pages": lambda kernel: kernel.has_data("zero_bm"),
    "prints_zero_count": lambda kernel: kernel.has_data("zero_bm"),
    "execmem_unmaps_2m": _execmem_unmaps_2m,
}
"""Field of `KernelRules` -> the question to the kernel. The other fields leave no trace in a kernel's symbols."""


def rules_named(line: str) -> KernelRules:
    """Return the rules of a line by its name, or those of a probed kernel by `KernelRules.line`.

    Raises:
        FormatError: no line of that name, with the names there are; or a rule that does not exist.
    """
    match = _NAME.fullmatch(line)
    if not match or match[1] not in RULES:
        raise FormatError(f"no rules for a kernel line {line!r}", expected=", ".join(rules.line for rules in LINES))
    changed = {name: True for name in (match[2] or "").split(", ") if name}
    changed |= {name: False for name in (match[3] or "").split(", ") if name}
    if unknown := changed.keys() - set(RULE_NAMES):
        raise FormatError(f"no rule of the kernel is named {min(unknown)!r}", expected=", ".join(RULE_NAMES))
    return _changed(RULES[match[1]], changed)


def rules_for_release(release: str) -> KernelRules:
    """Return the rules of a kernel by its release (`uname -r`): those of the newest line that is not newer.

    For simulated machines, and the fallback where a real kernel cannot be asked: a distribution's kernel may have what
    its release is too old for. A release older than any line gets the oldest.

    Raises:
        FormatError: not a kernel release.
    """
    return RULES.for_release(release) or RULES.oldest


def rules_probed(kernel: ProbedKernel | None, release: str | None = None) -> Probed[KernelRules]:
    """Return the rules of a real kernel: probed, or those of its line where the probe has no answer.

    Args:
        kernel: the kernel; None if nothing of it can be read.
        release: its release; the oldest line if it is not known, or not a release.
    """
    try:
        line = rules_for_release(release) if release is not None else RULES.oldest
    except FormatError:
        line = RULES.oldest
    known = answers_of(kernel, PROBES)
    return Probed(
        _changed(line, known),
        tuple(name for name in RULE_NAMES if name in known),
        tuple(name for name in RULE_NAMES if name not in known),
    )


def _changed(line: KernelRules, values: Mapping[str, bool]) -> KernelRules:
    """Return rules that differ from a line's in some flags, under a name that `rules_named` reads."""
    differing = [name for name in RULE_NAMES if name in values and values[name] != getattr(line, name)]
    if not differing:
        return line
    gained, lost = ([name for name in differing if values[name] is wanted] for wanted in (True, False))
    words = f" with {', '.join(gained)}" * bool(gained) + f" without {', '.join(lost)}" * bool(lost)
    return replace(line, line=line.line + words, **dict(values))
