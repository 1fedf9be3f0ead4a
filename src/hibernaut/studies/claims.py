# SPDX-License-Identifier: GPL-2.0-or-later
"""The claims: statements about every trial of some studies, as functions, so that they can turn out false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hibernaut.exploration.layouts import RegionKind, Structure
from hibernaut.exploration.run import Outcome
from hibernaut.hibernation.owners import ONCE_RESUMED, WHILE_WRITING
from hibernaut.studies.questions import COMING, MOST_SPLITS, RESERVES_AT_THE_MARK, STUDIES
from hibernaut.studies.trials import (
    Trial,
    cleared_hidden_page,
    crashed,
    crashed_in_owner,
    crashed_in_reset,
    crashed_on_lists,
    is_clean,
    is_torn,
    loses,
    met_another_frame,
    met_null_in_pcplist,
    refused_for_the_reserve,
    skipped,
    tore_lists,
)

__all__ = ["CLAIMS", "Claim"]


@dataclass(frozen=True)
class Claim:
    """A statement about every machine of some studies.

    Attributes:
        name: its name, and that of its file.
        title: the claim, a sentence.
        says: its exact meaning: the condition that `holds` computes.
        studies: names of the studies that it is about.
        ways: names of the ways that it is about.
        holds: whether it is true of a trial.
        shows: the way, and a predicate of outcomes: the shortest such run comes with the claim.
        plays: another way by which the machine of that run is played instead, without interference.
    """

    name: str
    title: str
    says: str
    studies: tuple[str, ...]
    ways: tuple[str, ...]
    holds: Callable[[Trial], bool]
    shows: tuple[str, Callable[[Outcome], bool]]
    plays: str | None = None


_ALL = tuple(study.name for study in STUDIES if study not in COMING and study.name != "depletion")
_LINES = tuple(study.name for study in STUDIES if study.name.startswith("line "))

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "fixmap-is-safe",
        "Through a fixmap slot, with the NULL check, every page is saved in every run, and nothing else changes.",
        "no run of `fixmap` violates any invariant, in any study; the run below is Remap's shortest torn run, played "
        "through the slot",
        tuple(name for name in _ALL if name != "reserve"),
        ("fixmap",),
        lambda trial: not trial.ends(lambda outcome: not is_clean(outcome) or outcome.status != "saved"),
        ("remap", is_torn),
        "fixmap",
    ),
    Claim(
        "fixmap-as-posted-crashes-without-a-table",
        "As posted (v1 and v3), the series still crashes where a page has no PTE table: a NULL dereference, before "
        "the slot is used.",
        "`fixmap-v1` and `fixmap-v3` break an invariant exactly on machines with a region without a table, and then "
        "only by crashing while reading the NULL entry",
        ("kinds", *_LINES),
        ("fixmap-v1", "fixmap-v3"),
        lambda trial: (
            trial.ends(lambda outcome: not is_clean(outcome)) == trial.has(RegionKind.NO_TABLE)
            and not trial.ends(lambda outcome: not is_clean(outcome) and "reading the NULL entry" not in outcome.crash)
        ),
        ("fixmap-v3", crashed),
    ),
    Claim(
        "the-null-check-cures-it",
        'One line cures that: `kernel_page_present` has to treat a missing entry as "not present".',
        "`fixmap`, which has that line and differs from `fixmap-v3` in nothing else, is clean on all machines with a "
        "region without a table; the run below is the one in which `fixmap-v3` crashes, with the line",
        ("kinds", *_LINES),
        ("fixmap",),
        lambda trial: not trial.has(RegionKind.NO_TABLE) or not trial.ends(lambda outcome: not is_clean(outcome)),
        ("fixmap-v3", crashed),
        "fixmap",
    ),
    Claim(
        "remap-crashes-after-a-warning",
        "Remap, first failure: an allocation for a split fails, the kernel warns once and crashes with a page fault in "
        "the copy.",
        "`remap` crashes in some run exactly on machines with a region of 2 MiB or 1 GiB in one entry, and never "
        "without the warning",
        ("regions",),
        ("remap",),
        lambda trial: (
            trial.ends(crashed) == (trial.splits > 0)
            and not trial.ends(lambda outcome: crashed(outcome) and not outcome.warned)
        ),
        ("remap", lambda outcome: crashed(outcome) and outcome.warned),
    ),
    Claim(
        "remap-crashes-without-a-warning",
        "Remap, second failure: a page without an entry. CPA ignores it and reports success; a page fault in the copy "
        "follows, without a warning.",
        "on machines whose first region without an entry has a PTE table, `remap` and `remap-whole` have a run that "
        "crashes with that page fault without a warning; on machines without such regions they have none",
        ("kinds", *_LINES),
        ("remap", "remap-whole"),
        lambda trial: (
            trial.ends(lambda outcome: "page fault" in outcome.crash and not outcome.warned)
            == (trial.first_without_entry == RegionKind.NONE)
        ),
        ("remap", lambda outcome: "page fault" in outcome.crash and not outcome.warned),
    ),
    Claim(
        "remap-tears-the-image",
        "Remap, third failure, and the worst: nothing fails, nothing is printed, and the resumed machine's direct map "
        "is garbage.",
        "`remap` has a run without any failure in which a page table is missing from the image exactly on machines "
        "where a large entry that has to be split lies in a table above its region; the replay shows which pages are "
        "lost from the map",
        ("regions", "6.13-rc"),
        ("remap",),
        lambda trial: trial.ends(lambda outcome: is_torn(outcome) and not outcome.warned) == trial.split_above,
        ("remap", lambda outcome: is_torn(outcome) and not outcome.warned),
    ),
    Claim(
        "remap-without-a-table-dereferences-null",
        "Where there is no PTE table at all, Remap crashes as the series does: a NULL dereference.",
        "`remap` has a run that crashes while reading the NULL entry exactly on machines whose first region without "
        "an entry has no table",
        ("kinds", *_LINES),
        ("remap",),
        lambda trial: (
            trial.ends(lambda outcome: "reading the NULL entry" in outcome.crash)
            == (trial.first_without_entry == RegionKind.NO_TABLE)
        ),
        ("remap", lambda outcome: "reading the NULL entry" in outcome.crash),
    ),
    Claim(
        "remap-leaks-where-it-does-not-tear",
        "Where the tables lie below and the allocator's pages above, Remap's image is consistent: a page leaks, no "
        "more.",
        "on machines with large entries to split, all of them in tables below, every run of `remap` that is saved "
        "breaks `allocator-sound` by a leak, and at most `same-rights` besides",
        ("regions",),
        ("remap",),
        lambda trial: (
            trial.splits == 0
            or trial.split_above
            or not trial.ends(lambda outcome: outcome.status == "saved" and (outcome.loses or is_clean(outcome)))
        ),
        ("remap", lambda outcome: outcome.status == "saved" and not outcome.loses and not is_clean(outcome)),
    ),
    Claim(
        "remap-whole-is-safe-for-entries",
        "RemapWhole is safe wherever there is a large entry, and 4K entries that their owner rewrites.",
        "no run of `remap-whole` violates any invariant on machines without regions that lack an entry or a table; no "
        "page of these studies has an owner that restores PRESENT alone",
        ("regions", "kinds", "places", "6.13-rc", *_LINES),
        ("remap-whole",),
        lambda trial: trial.first_without_entry is not None or not trial.ends(lambda outcome: not is_clean(outcome)),
        ("remap", is_torn),
        "remap-whole",
    ),
    Claim(
        "kfence-faults-while-the-image-is-written",
        "A 4K entry that is not present is not harmless: KFENCE restores PRESENT alone, and RW is lost. Its next "
        "allocation faults, while the image is written.",
        "`remap` and `remap-whole`, which handles 4K entries alike, have a run that crashes in `__kfence_alloc` on the "
        "live machine exactly on machines with a KFENCE pool that was switched on at run time",
        ("owners", "owners 6.12", "owners 7.3"),
        ("remap", "remap-whole"),
        lambda trial: (
            trial.ends(lambda outcome: crashed_in_owner(outcome, WHILE_WRITING)) == trial.has(RegionKind.KFENCE)
        ),
        ("remap", lambda outcome: crashed_in_owner(outcome, WHILE_WRITING)),
    ),
    Claim(
        "kfence-faults-once-resumed",
        "If KFENCE happens to allocate nothing until the machine is off, the resumed machine faults, where the PTE "
        "table of the pool was copied after it.",
        "`remap` and `reserved:9`, which change 4K entries alike, have a run that crashes in `__kfence_alloc` on the "
        "resumed machine exactly on machines with a KFENCE pool that was switched on at run time and has its tables "
        "above",
        ("owners",),
        ("remap", "reserved:9"),
        lambda trial: trial.ends(lambda outcome: crashed_in_owner(outcome, ONCE_RESUMED)) == trial.pool_above,
        ("remap", lambda outcome: crashed_in_owner(outcome, ONCE_RESUMED)),
    ),
    Claim(
        "kfence-not-inverted-faults-in-the-copy",
        "Where KFENCE does not invert the frame of a not-present entry, CPA makes it present with another frame, and "
        "the copy faults.",
        "by the rules of 6.15, `remap` and `remap-whole` have a run that crashes in the copy, at a reserved bit, "
        "exactly on machines with a KFENCE pool that was switched on at run time, and none that crashes in "
        "`__kfence_alloc`; the modelled CPU has fewer than 52 physical address bits",
        ("owners 6.15",),
        ("remap", "remap-whole"),
        lambda trial: (
            trial.ends(met_another_frame) == trial.has(RegionKind.KFENCE) and not trial.ends(crashed_in_owner)
        ),
        ("remap", met_another_frame),
    ),
    Claim(
        "rewritten-entries-lose-nothing",
        "4K entries that their owner rewrites lose nothing, and neither does a KFENCE pool that was made at boot: its "
        "pages are reserved, and not saved where they are not present.",
        "no run of `remap` or `remap-whole` violates any invariant on machines whose regions are pages of an owner "
        "that sets PRESENT and RW, or KFENCE pools in reserved memory",
        ("owners", "owners 6.12", "owners 6.15", "owners 7.3"),
        ("remap", "remap-whole"),
        lambda trial: (
            trial.has(RegionKind.KFENCE, RegionKind.BLOCK) or not trial.ends(lambda outcome: not is_clean(outcome))
        ),
        ("remap-no-unmap", lambda outcome: outcome.status == "saved" and "same-translations" in outcome.violated),
        "remap",
    ),
    Claim(
        "fixmap-keeps-kfence",
        "Through a fixmap slot no entry of the direct map changes, and KFENCE continues, on the live machine and on "
        "the resumed one.",
        "no run of `fixmap`, `fixmap-v1` or `fixmap-v3` violates any invariant on machines with a KFENCE pool; the run "
        "below is played on the machine on which Remap's resumed machine crashes",
        ("owners", "owners 6.12", "owners 6.15", "owners 7.3"),
        ("fixmap", "fixmap-v1", "fixmap-v3"),
        lambda trial: not trial.ends(lambda outcome: not is_clean(outcome) and trial.has(RegionKind.KFENCE)),
        ("remap", crashed_in_owner),
        "fixmap",
    ),
    Claim(
        "reserved-needs-enough-pages-above",
        "Reserved loses nothing exactly if there are as many reserved pages as splits, and they lie above the split "
        "regions, or the tables of these lie below.",
        "`reserved:N` has no run that loses or breaks anything exactly on machines whose saved pages take at most N "
        "splits, and where the free pages lie above the regions or no large entry to be split lies in a table above",
        ("reserve",),
        tuple(f"reserved:{pages}" for pages in range(MOST_SPLITS + 1)),
        lambda trial: (
            trial.ends(loses) == (trial.splits > trial.reserve or (trial.split_above and trial.below(Structure.FREE)))
        ),
        ("reserved:1", lambda outcome: outcome.loses and not is_torn(outcome) and not crashed(outcome)),
    ),
    Claim(
        "reserved-leaves-traces",
        "Even where it loses nothing, the large page stays split.",
        "`reserved:9` is clean exactly on machines where no large entry lies in a table above its region: where one "
        "does, the resumed machine has it split",
        ("regions",),
        ("reserved:9",),
        lambda trial: trial.ends(lambda outcome: not is_clean(outcome)) == trial.split_above,
        ("reserved:9", lambda outcome: not is_clean(outcome)),
    ),
    Claim(
        "skipping-loses-pages",
        "Policies that skip a page (NULL from `hibernate_map_page`) trade the crash for lost pages in an image that "
        "loads.",
        "`remap-generic` and `remap-generic-zero` never crash on machines whose regions have entries, and have a run "
        "in which a listed page is missing exactly on those with large entries to split",
        ("regions",),
        ("remap-generic", "remap-generic-zero"),
        lambda trial: not trial.ends(crashed) and trial.ends(skipped) == (trial.splits > 0),
        ("remap-generic", skipped),
    ),
    Claim(
        "aborting-saves-the-machine-not-the-image",
        "Giving up instead loses nothing when an allocation fails, and does not change the torn image.",
        "`remap-generic-abort` never crashes, never skips a page, and is torn exactly where `remap` is",
        ("regions",),
        ("remap-generic-abort",),
        lambda trial: not trial.ends(crashed) and not trial.ends(skipped) and trial.ends(is_torn) == trial.split_above,
        ("remap-generic-abort", lambda outcome: outcome.status == "refused"),
    ),
    Claim(
        "a-stale-translation-hides-the-failure",
        "A CPU that still caches the translation can hide a failed split: after the warning the page is read all the "
        "same.",
        "`remap` has a run that is saved after a warning exactly on machines with large entries to split whose CPU "
        "still caches translations of the regions",
        ("regions",),
        ("remap",),
        lambda trial: (
            trial.ends(lambda outcome: outcome.status == "saved" and outcome.warned)
            == (trial.splits > 0 and trial.machine.remembered)
        ),
        ("remap", lambda outcome: outcome.status == "saved" and outcome.warned and not outcome.loses),
    ),
    Claim(
        "torn-lists-need-both-sides",
        "The allocator's lists are torn exactly where its own pages lie on both sides of the regions, or where the "
        "page of a lost table is on a free list.",
        "by `remap`, on machines with large entries to split: where the array of struct page, the list heads and the "
        "CPUs' lists all lie above, no list is torn; where all lie below, lists are torn exactly if a table is lost "
        "(its page is on a free list); else in every run that is saved",
        ("places", "6.13-rc"),
        ("remap",),
        lambda trial: trial.splits == 0 or _as_the_sides_say(trial),
        ("remap", lambda outcome: tore_lists(outcome) and not crashed(outcome)),
    ),
    Claim(
        "null-on-a-cpu-list",
        "A NULL link on a CPU's own list, found by the next allocation in `__rmqueue_pcplist`, needs the array of "
        "struct page below the blocks and the CPU's list above them.",
        "by `remap`, a resumed machine that crashes with a NULL dereference in `__rmqueue_pcplist` has the array of "
        "struct page below the regions and the CPUs' lists above, in every study; and on every such machine with "
        "large entries to split the next allocations are fatal, by NULL or by a poisoned link",
        ("places", "6.13-rc"),
        ("remap",),
        lambda trial: (
            trial.splits == 0
            or (
                trial.ends(lambda outcome: crashed_on_lists(outcome) and "__rmqueue_pcplist" in outcome.crash)
                == (trial.below(Structure.MEM_MAP) and not trial.below(Structure.PCP))
            )
        ),
        ("remap", met_null_in_pcplist),
    ),
    Claim(
        "torn-lists-without-a-lost-table",
        "No table needs to be lost for that: on a machine of two NUMA nodes the image can have every page table and "
        "be torn in the allocator alone.",
        "by `remap`, on machines whose pages come from the lower node, regions and CPU being on the upper one, and "
        "whose tables all lie below: no run loses a table, and with large entries to split every run without a "
        "failing allocation crashes in its free lists, once resumed",
        ("two nodes",),
        ("remap",),
        lambda trial: (
            not trial.ends(is_torn)
            and not trial.ends(lambda outcome: outcome.status == "saved" and trial.splits > 0)
            and trial.ends(crashed_on_lists) == (trial.splits > 0)
        ),
        ("remap", crashed_on_lists),
    ),
    Claim(
        "remap-runs-out-at-the-mark",
        "Remap fails with nothing injected, once its splits use up the pages above the zone's min mark. Pages on the "
        "CPU's list do not help.",
        "no allocation is made to fail, and nothing is reclaimed; `remap` crashes after the warning exactly on "
        "machines with more splits than pages that are served, and warns or crashes on no other: of F free pages, with "
        "min mark M and refills of B pages, none is served if F <= M, else (refills - 1) * B + 1, where refills is "
        "(F - M) / B, rounded up",
        ("depletion",),
        ("remap",),
        lambda trial: _fails_exactly(trial, trial.splits > trial.served()),
        ("remap", lambda outcome: crashed(outcome) and outcome.warned),
    ),
    Claim(
        "aborting-at-the-mark-refuses",
        "Giving up instead refuses on the same machines, and crashes on none.",
        "no allocation is made to fail, and nothing is reclaimed; `remap-generic-abort` refuses exactly on machines "
        "with more splits than pages that are served, counted as above, and never crashes; the run below is the one in "
        "which `remap` crashes, played by it",
        ("depletion",),
        ("remap-generic-abort",),
        lambda trial: (
            trial.ends(lambda outcome: outcome.status == "refused") == (trial.splits > trial.served())
            and not trial.ends(crashed)
        ),
        ("remap", lambda outcome: crashed(outcome) and outcome.warned),
        "remap-generic-abort",
    ),
    Claim(
        "without-a-split-no-mark-counts",
        "A way that splits nothing needs no page, wherever the mark is.",
        "no run of `fixmap` or `remap-whole` violates any invariant, with the zone at its mark too; the run below is "
        "the one in which `remap` crashes, played through the slot",
        ("depletion",),
        ("fixmap", "remap-whole"),
        lambda trial: not trial.ends(lambda outcome: not is_clean(outcome) or outcome.status != "saved"),
        ("remap", lambda outcome: crashed(outcome) and outcome.warned),
        "fixmap",
    ),
    Claim(
        "a-reserve-comes-from-above-the-mark",
        "Pages that are reserved before the copy have to be above the mark as well: without them the kernel refuses to "
        "hibernate. Where they are fewer than the splits, the others fail as Remap's do.",
        "no allocation is made to fail, and nothing is reclaimed; `reserved:N` refuses exactly on machines that serve "
        "fewer than N pages, and of the others crashes exactly on those with more than N + S splits, where S pages are "
        "served of F - N free ones, the CPU's list having been drained",
        ("depletion",),
        RESERVES_AT_THE_MARK,
        lambda trial: (
            trial.ends(refused_for_the_reserve)
            if trial.served() < trial.reserve
            else _fails_exactly(trial, trial.splits - trial.reserve > trial.served(taken=trial.reserve))
        ),
        ("reserved:3", refused_for_the_reserve),
    ),
    Claim(
        "mermap-is-safe",
        "Through the proposed mermap every page is saved, too: an address need not be flushed before it is used again.",
        "no run of `mermap` or `mermap:2` violates any invariant; the run below is the mutant's without a flush, "
        "played with it; unconfirmed on a real kernel",
        ("candidates", "vmalloc", "unmapped"),
        ("mermap", "mermap:2"),
        lambda trial: not trial.ends(lambda outcome: not is_clean(outcome) or outcome.status != "saved"),
        ("mermap-no-flush", lambda outcome: "same-data" in outcome.violated),
        "mermap",
    ),
    Claim(
        "a-block-by-one-entry-is-safe",
        "A hidden block can be copied through one entry of 2 MiB, with two invalidations in place of 1024.",
        "no run of `fixmap-whole-run` violates any invariant; the run below is the mutant's that does not invalidate, "
        "played with the invalidation; unconfirmed on a real kernel",
        ("candidates", "vmalloc", "unmapped"),
        ("fixmap-whole-run",),
        lambda trial: not trial.ends(lambda outcome: not is_clean(outcome) or outcome.status != "saved"),
        ("fixmap-whole-run-no-flush", lambda outcome: "same-data" in outcome.violated),
        "fixmap-whole-run",
    ),
    Claim(
        "a-block-left-mapped-comes-back",
        "The entry of a block has to be cleared before another page is copied: else it is in the image.",
        "the mutant `fixmap-whole-run-no-clear` breaks `slot-empty`, and nothing else, exactly on machines with a "
        "region of 2 MiB or 1 GiB in one entry whose fixmap tables lie above the regions",
        ("candidates",),
        ("fixmap-whole-run-no-clear",),
        lambda trial: (
            trial.ends(lambda outcome: outcome.violated == ("slot-empty",))
            == (trial.splits > 0 and not trial.below(Structure.ROOT))
            and not trial.ends(lambda outcome: outcome.violated not in ((), ("slot-empty",)))
        ),
        ("fixmap-whole-run-no-clear", lambda outcome: not is_clean(outcome)),
    ),
    Claim(
        "two-roots-are-torn-by-either",
        "With a second root that mirrors the direct map, Remap splits twice, and the image is torn if either entry "
        "lies in a table above.",
        "`remap` has a run in which a page table is missing from the image exactly on machines with a region of 2 MiB "
        "in one entry where the table of that entry lies above the regions in the first root or in the second; "
        "unconfirmed on a real kernel",
        ("second root",),
        ("remap",),
        lambda trial: (
            trial.ends(is_torn)
            == (trial.split_above or (trial.splits > 0 and not trial.below_if_any(Structure.SECOND_ROOT)))
        ),
        ("remap", is_torn),
    ),
    Claim(
        "two-roots-stay-the-same-without-a-split",
        "Where nothing is split, both roots come back as they were.",
        "no run of `fixmap`, `mermap`, `mermap:2`, `fixmap-whole-run` or `remap-whole` violates any invariant, in "
        "either root; the run below is the mutant's that resets one root alone, played by `remap-whole`; unconfirmed "
        "on a real kernel",
        ("second root",),
        ("fixmap", "mermap", "mermap:2", "fixmap-whole-run", "remap-whole"),
        lambda trial: not trial.ends(lambda outcome: not is_clean(outcome) or outcome.status != "saved"),
        ("remap-whole-one-root", lambda outcome: "same-translations" in outcome.violated),
        "remap-whole",
    ),
    Claim(
        "a-vmalloc-area-in-its-window-is-torn",
        "A huge vmalloc area that is reset in one call is one not-present entry for a moment. If the copy meets it, "
        "Remap tears the image, and the kernel thread that continues on the resumed machine maps garbage.",
        "`remap` has a run in which the resumed kernel thread resets the area, frees its pages, and their next user "
        "faults, exactly on machines where the entry of an area lies in a table above; guests of 6.1, 6.12 and 7.3 end "
        "so, whose block a module hid by one call",
        ("vmalloc",),
        ("remap",),
        lambda trial: trial.ends(lambda outcome: crashed_in_reset(outcome, ONCE_RESUMED)) == trial.split_above,
        ("remap", lambda outcome: crashed_in_reset(outcome, ONCE_RESUMED)),
    ),
    Claim(
        "the-live-thread-continues",
        "On the live machine the thread resets the area whatever the copy left: a split area takes no page.",
        "no run of `remap`, `reserved:2` or `remap-whole` crashes where the area is reset while the image is written; "
        "guests of 6.1, 6.12 and 7.3 with `remap` continue so, whose block a module hid by one call",
        ("vmalloc", "unmapped"),
        ("remap", "reserved:2", "remap-whole"),
        lambda trial: not trial.ends(lambda outcome: crashed_in_reset(outcome, WHILE_WRITING)),
        ("remap", lambda outcome: crashed_in_reset(outcome, ONCE_RESUMED)),
        "remap-whole",
    ),
    Claim(
        "hidden-blocks-are-safe-without-a-split",
        "Where nothing is split, blocks stay whole: their owners reset and free them on either machine, and free ones "
        "are neither saved nor touched.",
        "no run of `fixmap`, `mermap`, `mermap:2`, `fixmap-whole-run` or `remap-whole` violates any invariant, "
        "allocations after the resume included, which map free unmapped pageblocks; the run below is one of Remap's "
        "that crash, played through the slot; unconfirmed on a real kernel",
        ("vmalloc", "unmapped"),
        ("fixmap", "mermap", "mermap:2", "fixmap-whole-run", "remap-whole"),
        lambda trial: not trial.ends(lambda outcome: not is_clean(outcome) or outcome.status != "saved"),
        ("remap", lambda outcome: crashed(outcome) and ("clear_page" in outcome.crash or outcome.warned)),
        "fixmap",
    ),
    Claim(
        "a-block-given-out-in-the-copy-is-not-mapped",
        "A split that finds no mapped page free takes an unmapped pageblock. The image can then have the block given "
        "out and its entry not present: no table is lost, nothing is printed, and the next user of its pages faults.",
        "`remap` has a run that crashes while it clears a page that was just allocated exactly on machines with an "
        "allocated and a free unmapped pageblock, the tables of both below, and the array of struct page above; the "
        "place of the series' own mark of a block is not modelled; unconfirmed on a real kernel",
        ("unmapped",),
        ("remap",),
        lambda trial: (
            trial.ends(cleared_hidden_page)
            == (
                trial.tables_below(RegionKind.UNMAPPED)
                and trial.tables_below(RegionKind.UNMAPPED_FREE)
                and not trial.below(Structure.MEM_MAP)
            )
        ),
        ("remap", cleared_hidden_page),
    ),
)
"""All claims, in the order of the page."""


def _fails_exactly(trial: Trial, fails: bool) -> bool:
    """Return whether every run of a trial crashes after the warning, or every one is saved without it."""
    if fails:
        return not trial.ends(lambda outcome: not (crashed(outcome) and outcome.warned))
    return not trial.ends(lambda outcome: outcome.warned or outcome.status != "saved")


def _as_the_sides_say(trial: Trial) -> bool:
    """Return whether a trial is as the claim `torn-lists-need-both-sides` says."""
    below = {trial.below(each) for each in (Structure.MEM_MAP, Structure.ZONE, Structure.PCP)}
    torn = trial.ends(lambda outcome: tore_lists(outcome))
    if below == {False}:
        return not torn
    if below == {True}:
        return torn == trial.split_above
    return torn and not trial.ends(lambda outcome: outcome.status == "saved" and not tore_lists(outcome))
