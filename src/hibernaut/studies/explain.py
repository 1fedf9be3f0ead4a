# SPDX-License-Identifier: GPL-2.0-or-later
"""The question of the mailing list, answered by running each of its branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hibernaut.hibernation.ways import Fixmap, Remap
from hibernaut.linux.rules import KernelRules
from hibernaut.studies.matrix import SITUATIONS, Cell, run_cell

__all__ = ["QUESTION", "Branch", "explain"]

QUESTION = (
    "Does CPA just fail to find an existing PTE and fall over? Or does it try to, and fail to, allocate the PTE page?"
)
"""Dave Hansen, January 2023, in the thread "x86/hibernate: Use fixmap for saving unmapped pages"."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One way through the code.

    Attributes:
        title: the condition under which it is taken.
        path: its functions, each with its result.
        today: the run by mainline's way.
        fixmap: the run through the fixmap slot.
    """

    title: str
    path: tuple[str, ...]
    today: Cell
    fixmap: Cell


BRANCHES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "4K hole",
        "there is a PTE, not present",
        (
            "kernel_page_present: PRESENT is clear, so false",
            "set_direct_map_default_noflush: __change_page_attr finds the PTE and sets PRESENT and RW: no table needed",
            "copied, then set_direct_map_invalid_noflush clears both again",
            "an owner that sets both when it puts the page back, as that of secret memory does, misses nothing",
        ),
    ),
    (
        "KFENCE, image written",
        "the same, and the owner of the page cleared PRESENT alone: KFENCE, switched on at run time",
        (
            "as before: set_direct_map_invalid_noflush clears RW as well, which KFENCE had left in the entry",
            "the image is complete, and the live machine writes it to disk",
            "__kfence_alloc takes the object: kfence_protect_page sets PRESENT alone, and the write to the page faults",
        ),
    ),
    (
        "2M hole, table below",
        "there is no PTE: the page lies in a not-present 2 MiB entry, and a page for the table can be allocated",
        (
            "kernel_page_present: lookup_address stops at the PMD entry: false",
            "__change_page_attr: part of a large page is asked for, so split_large_page allocates a page and fills it",
            "copied; the PMD table went into the image before that, so the image has the large entry; the new table's"
            " page is in use and not saved",
        ),
    ),
    (
        "2M hole, table above",
        "the same, but the PMD table lies above the block",
        (
            "as before; but the PMD table is copied after the split, and names a page that was allocated after the list"
            " of pages was fixed",
            "the resumed machine reads whatever lies in that page as its page table",
        ),
    ),
    (
        "2M hole, 1st allocation fails",
        "the same, and no page for the table can be allocated",
        (
            "split_large_page: alloc_pages fails: -ENOMEM, and CPA gives up",
            'hibernate_map_page: "Failed to remap page", once, and continues',
            "do_copy_page reads the page, which is still not present: page fault",
        ),
    ),
    (
        "1G hole, 2nd allocation fails",
        "the page lies in a not-present 1 GiB entry: two tables are needed, and the second cannot be allocated",
        (
            "split_large_page installs a table of 512 entries of 2 MiB, and starts over",
            "the second split fails: -ENOMEM; the first is not undone",
            "warning and page fault as before",
        ),
    ),
    (
        "none entry",
        "there is a PTE table, but its entry is zero",
        (
            "kernel_page_present: a zero entry is not present: false",
            "__cpa_process_fault: no entry, inside the direct map, where holes are expected: success",
            "no warning; do_copy_page reads the page: page fault",
        ),
    ),
    (
        "no table",
        "there is not even a PTE table",
        (
            "kernel_page_present: lookup_address returns NULL, and it is read without a check: NULL dereference",
            "CPA is never reached",
        ),
    ),
)
"""(name of the situation, condition, path)."""

NOT_INVERTED = (
    "kernel_page_present: PRESENT is clear, so false; by these rules KFENCE left the frame of the entry as it was",
    "set_direct_map_default_noflush: pte_pfn takes the frame for inverted, so the entry becomes present with another",
    "do_copy_page reads the page: page fault at reserved bits of the entry",
)
"""The path of "KFENCE, image written" without `KernelRules.kfence_inverts`."""


def explain(rules: KernelRules | None = None) -> Iterator[Branch]:
    """Run every branch by mainline's way and through the fixmap slot."""
    situations = {situation.name: situation for situation in SITUATIONS}
    for name, title, path in BRANCHES:
        situation = situations[name]
        machine = situation.machine(rules)
        if name == "KFENCE, image written" and not machine.rules.kfence_inverts:
            path = NOT_INVERTED
        yield Branch(
            title,
            path,
            run_cell(Remap(), situation, rules, machine),
            run_cell(Fixmap(), situation, rules, machine),
        )
