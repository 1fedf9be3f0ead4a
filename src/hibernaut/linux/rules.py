# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between kernels, as far as the direct map and the copy go: one value for each line, nothing else asks.

Read in the source of Debian's 6.1.192, 6.12.118 and 7.3.4; where a change came in between, "since" is what its commit
says. The line 6.13-rc is historical: its release candidates took 2 MiB blocks out of the direct map for executable
memory, and went back on it before the release (January 2025).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from hibernaut.errors import HibernautError
from hibernaut.paging.entries import Entry

__all__ = ["LINES", "KernelRules", "rules_for_release", "rules_named"]

_PRESENT_RW = int(Entry.PRESENT | Entry.RW)
_DIRTY = int(Entry.DIRTY)


@dataclass(frozen=True)
class KernelRules:
    """How the kernels of a line behave.

    Attributes:
        line: its name: the first version, or a release candidate.
        invalid_clears: the bits that set_direct_map_invalid_noflush clears (`__set_pages_np`,
            arch/x86/mm/pat/set_memory.c): PRESENT and RW; since v6.6 also DIRTY.
        ro_clears: the bits that set_memory_ro clears (same file): RW; since v6.6 also DIRTY.
        direct_map_pages: whether there is set_direct_map_valid_noflush for n pages in one request (same file; since
            v6.13), rather than one page a call.
        rox: whether there is set_memory_rox (same file; since v6.2).
        collapses: whether set_memory_rox puts 4K entries together to a large one again where they allow it
            (`cpa_collapse_large_pages`, same file; since v6.15), and set_memory_4k marks entries so that it does not.
        untangled_alias: whether NX stays out of what a change does to the other mapping of its frames
            (`cpa_process_alias`, same file), and a request that leaves the other mapping alone still fails where there
            is no entry outside the direct map; before, that was success (since v6.2).
        finds_wx: whether `verify_rwx` (same file) can find a page that becomes writable and executable. In 6.1 and
            6.12 it never does: `lookup_address_in_pgd_attr` and-s a bool with RW, which is bit 1, so that every address
            seems to be write-protected by the levels above. 7.3 has it right.
        inverts_not_present: whether bits 12-51 of a not-present entry are stored inverted
            (arch/x86/include/asm/pgtable-invert.h; since v4.18).
        asks_null: whether kernel_page_present takes no entry for "not present" instead of reading through NULL (same
            file as the first; no x86 kernel does).
        refuses_secret_memory: whether hibernation is refused while memfd_secret memory exists
            (`hibernation_available`, kernel/power/hibernate.c; since v5.14).
        zero_pages: whether a page of zeroes is only noted, not kept (`copy_data_pages`, kernel/power/snapshot.c; since
            v6.6).
        names_zero_pages: whether "Image created" counts them (`swsusp_save`, kernel/power/snapshot.c; since v6.6).
        says_progress: whether `swsusp_save` prints what it does without pm_debug_messages (`pr_info`; in 7.3 it is
            `pm_deferred_pr_dbg`).
        takes_blocks: whether the kernel itself takes whole 2 MiB blocks out of the direct map, for executable memory
            (`execmem_cache_populate`, mm/execmem.c; 6.13-rc only).
    """

    line: str
    invalid_clears: int = _PRESENT_RW
    ro_clears: int = int(Entry.RW)
    direct_map_pages: bool = False
    rox: bool = False
    collapses: bool = False
    untangled_alias: bool = False
    finds_wx: bool = False
    inverts_not_present: bool = True
    asks_null: bool = False
    refuses_secret_memory: bool = True
    zero_pages: bool = False
    names_zero_pages: bool = False
    says_progress: bool = True
    takes_blocks: bool = False


_6_1 = KernelRules("6.1")
_6_2 = replace(_6_1, line="6.2", rox=True, untangled_alias=True)
_6_6 = replace(
    _6_2,
    line="6.6",
    invalid_clears=_PRESENT_RW | _DIRTY,
    ro_clears=int(Entry.RW) | _DIRTY,
    zero_pages=True,
    names_zero_pages=True,
)
_6_12 = replace(_6_6, line="6.12")
_6_13_RC = replace(_6_12, line="6.13-rc", direct_map_pages=True, takes_blocks=True)
_6_13 = replace(_6_13_RC, line="6.13", takes_blocks=False)
_6_15 = replace(_6_13, line="6.15", collapses=True)
_7_3 = replace(_6_15, line="7.3", finds_wx=True, says_progress=False)

LINES: tuple[KernelRules, ...] = (_6_1, _6_6, _6_12, _6_13_RC, _6_15, _7_3)
"""Those with a name to ask for, oldest first."""

_RELEASED = (_6_1, _6_2, _6_6, _6_12, _6_13, _6_15, _7_3)

RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})(?:[.~+-]\S*)?")


def rules_named(line: str) -> KernelRules:
    """The rules of a line by its name, `LINES` and 6.2, 6.13. Raises HibernautError, with the names there are."""
    for rules in (*LINES, *_RELEASED):
        if rules.line == line:
            return rules
    raise HibernautError(f"no rules for a kernel {line!r} (known: {', '.join(rules.line for rules in LINES)})")


def rules_for_release(release: str) -> KernelRules:
    """The rules of a kernel by its release (`uname -r`): those of the newest line that is not newer.

    A release older than any line gets the oldest. Two lines are not offered by name: 6.2 to 6.5 have
    6.1's rules with set_memory_rox and the aliases untangled; 6.13 and 6.14 have 6.12's with n pages a request, for
    their release candidates' blocks are gone.

    Raises:
        HibernautError: not a release.
    """
    match = RELEASE.fullmatch(release)
    if not match:
        raise HibernautError(f"{release!r} is no kernel release (6.1, or in full: 6.1.0-56-amd64)")
    wanted = int(match[1]), int(match[2])
    known = [rules for rules in _RELEASED if tuple(map(int, rules.line.split("."))) <= wanted]
    return known[-1] if known else LINES[0]
