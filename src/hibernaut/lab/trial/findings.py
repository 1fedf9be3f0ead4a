# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on a kernel in one situation, from a watched hibernation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.judgement import crashed_in_lists
from hibernaut.lab.kernel_log import log_lines
from hibernaut.lab.laboratory import Resumed
from hibernaut.lab.page_tables import KernelTables
from hibernaut.lab.record import GuestRecord
from hibernaut.lab.trial.situations import TrialSituation
from hibernaut.lab.trial.watched import Watched
from hibernaut.paging.entries import Entry, Level

__all__ = ["Finding", "Word", "finding_of"]


class Word(StrEnum):
    """Verdict on a kernel in a situation."""

    CURED = "cured"
    NOT_CURED = "not cured"
    NOT_EXERCISED = "not exercised"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Finding:
    """A verdict with its reasons.

    Attributes:
        word: the verdict.
        why: one line each: what is wrong, or why nothing can be said; what was seen to be right if the kernel is cured.
        kernel_lines: messages of the kernel that bear on it.
    """

    word: Word
    why: tuple[str, ...]
    kernel_lines: tuple[str, ...] = ()


MAX_SHOWN = 3
MAX_LINES = 12
ALLOCATION = re.compile(r"hlab_region: allocation \d+ for a split, from \S+")
INJECTED = re.compile(ALLOCATION.pattern + ": failure injected")
ENTRY = re.compile(r"hibernation: hibernation entry")
FATAL = re.compile(
    r"BUG: (?!Bad page state)|general protection|Oops: |kernel BUG at|list_(?:add|del) corruption|stack segment|"
    r"double fault"
)
TELLING = re.compile(
    rf"{re.escape(FAILED_TO_REMAP)}|BUG: |#PF: |PGD |CPA|WARNING: |Kernel panic|Oops: |general protection|"
    r"list_\w+ corruption|RIP: 0010:"
)
END_OF_TRACE = re.compile(r"---\[ end (?:trace|Kernel panic)")
JUDGED = re.compile(
    r"(?<!\? )\b(?:swsusp_save|safe_copy_page|copy_data_pages?|do_copy_page|hibernate_(?:un)?map_page)(?:\.\w+)*\+0x"
)
"""Functions of the copy in a trace; a question mark stands before addresses that the unwinder does not trust."""
OWNER = re.compile(r"RIP: 0010:\w*kfence")
ADDRESS = re.compile(r"unable to handle (?:page fault for address|kernel paging request at):? ?(?:0x)?([0-9a-f]{16})")
LONE_PAGE = 7
"""Page of a block that the module takes out alone (LONE_PAGE in guest/region)."""
BLOCK_BYTES = {"1g": 1 << 30}


def finding_of(situation: TrialSituation, seen: Watched) -> Finding:
    """Return the verdict on a kernel in a situation."""
    printed = _since_entry(seen.done.log)
    words = tuple(line for line in printed if TELLING.match(line))[:MAX_LINES]
    if seen.done.outcome == "refused":
        return Finding(Word.UNCLEAR, (f"the kernel refused to hibernate: {seen.done.reason}",), words)
    if seen.before is None:
        return Finding(Word.UNCLEAR, (f"the guest did not get to the copy: {seen.done.summary}",), words)
    shown = list(_not_hidden(seen.before, seen.done.record))
    if shown or (situation.variant.kfence and not _hidden_pages(seen.before)):
        why = shown or ["KFENCE's pool has no entry that is not present"]
        return Finding(Word.NOT_EXERCISED, tuple(why), words)
    wrong, elsewhere = _wrong(situation, seen, printed)
    if wrong:
        resumed = seen.resumed.log if seen.resumed and not seen.resumed.passed else ""
        more = () if words else tuple(line for line in log_lines(resumed) if TELLING.match(line))[:MAX_LINES]
        return Finding(Word.NOT_CURED, tuple(wrong), words or more)
    if elsewhere:
        return Finding(Word.UNCLEAR, (elsewhere,), words)
    return Finding(Word.CURED, (_right(situation, seen),), words)


def _wrong(situation: TrialSituation, seen: Watched, printed: Sequence[str]) -> tuple[list[str], str]:
    """Return what is wrong, one line each; and what else went wrong that is not the judged code's doing."""
    wrong, elsewhere = list(_wrong_in_the_copy(seen, printed)), ""
    if seen.done.outcome == "died":
        crash = _crash(printed)
        if _is_judged(crash, seen.done.record) or (seen.after is None and not crash):
            wrong.append(f"the kernel crashes {_where(crash, seen)}: {seen.done.reason}")
        else:
            elsewhere = f"the guest crashed outside the code that is judged: {seen.done.reason}"
    resumed = seen.resumed
    if resumed is None:
        return wrong, elsewhere
    wrong += _wrong_afterwards(resumed)
    crashed = resumed.reason.startswith("crashed: ")
    if crashed and (
        (situation.lists and crashed_in_lists(resumed)) or _is_judged(_crash(log_lines(resumed.log)), seen.done.record)
    ):
        wrong.append(f"the resumed machine crashes: {resumed.reason.removeprefix('crashed: ')}")
    elif crashed:
        elsewhere = f"the resumed guest crashed outside the code that is judged: {resumed.reason}"
    elif not resumed.passed and "pages" in resumed.facts:
        wrong.append(f"after the resume: {resumed.reason}")
    elif not resumed.passed:
        elsewhere = f"the guest did not resume: {resumed.reason}"
    return wrong, elsewhere


def _wrong_in_the_copy(seen: Watched, printed: Sequence[str]) -> Iterator[str]:
    """Yield what the copy did that it must not: it allocated, could not map, changed page tables, or lost some."""
    allocations = sum(bool(ALLOCATION.match(line)) for line in printed)
    failed = sum(bool(INJECTED.match(line)) for line in printed)
    if allocations:
        of_them = f", {failed} made to fail" if failed else ""
        yield f"{_counted(allocations, 'allocation')} in the copy loop{of_them}"
    if any(FAILED_TO_REMAP in line for line in printed):
        yield f'the kernel says "{FAILED_TO_REMAP}"'
    changes = list(seen.before.changes(seen.after)) if seen.before and seen.after else []
    if changes:
        first = "; ".join(map(str, changes[:MAX_SHOWN]))
        noun = "entry" if len(changes) == 1 else "entries"
        yield f"{len(changes)} {noun} of the kernel's page tables changed: {first}"
    if seen.lacking:
        frames = " ".join(map(hex, seen.lacking[:MAX_SHOWN]))
        yield f"the image lacks {_counted(len(seen.lacking), 'page table')} that its own tables point to: {frames}"


def _wrong_afterwards(resumed: Resumed) -> Iterator[str]:
    """Yield what the owners of hidden pages ran into on the resumed machine."""
    for answer in resumed.facts.get("answers", ()):
        for line in answer:
            if " owner=faults" in line:
                block = re.search(r"block=(\S+)", line)
                yield f"the owner of the page in block {block[1] if block else '?'} faults when it writes to it"


def _right(situation: TrialSituation, seen: Watched) -> str:
    tables = 0 if seen.before is None else len(seen.before.tables)
    counted = "no allocation in the copy, " if seen.counted else "allocations not counted, "
    probe = counted if situation.variant.regions else ""
    if situation.fails_allocations:
        probe = "no allocation in the copy, so none that could fail (of two provoked ones, one failed); "
    resumed = f"; {seen.resumed.reason}" if seen.resumed else ""
    return f"{probe}{tables} page tables equal before and after it{resumed}"


def _not_hidden(before: KernelTables, record: GuestRecord) -> Iterator[str]:
    """Yield the regions that are not as the situation wants them when the copy begins."""
    for region in record.regions:
        address, wish = int(region["address"], 16), region["wish"].partition(":")[0]
        level = {"1g": Level.PUD, "2m": Level.PMD, "none-2m": Level.PMD}.get(wish, Level.PTE)
        if level == Level.PTE:
            address += LONE_PAGE << 12
        entry = before.entry(address, level)
        zero = wish.startswith("none")
        if entry is None or entry & Entry.PRESENT or (entry == 0) != zero:
            is_now = "no table" if entry is None else f"entry {entry:#x}"
            yield f"block {region['block']} is not {wish} when the copy begins: {is_now}"


def _hidden_pages(before: KernelTables) -> int:
    """Return the number of entries with a frame that are not present, in tables of 4K entries."""
    return sum(
        int(np.count_nonzero((entries != 0) & ((entries & np.uint64(Entry.PRESENT)) == 0)))
        for entries in before.tables.values()
        if entries is not None
    )


def _since_entry(log: str) -> list[str]:
    lines = log_lines(log)
    begins = next((number for number, line in enumerate(lines) if ENTRY.search(line)), 0)
    return lines[begins:]


def _crash(lines: Sequence[str]) -> list[str]:
    """Return the lines of the first fatal message, up to the end of its trace."""
    begins = next((number for number, line in enumerate(lines) if FATAL.match(line)), None)
    if begins is None:
        return []
    ends = next((number for number in range(begins, len(lines)) if END_OF_TRACE.match(lines[number])), len(lines))
    return list(lines[begins:ends])


def _is_judged(crash: Sequence[str], record: GuestRecord) -> bool:
    """Tell whether a crash is in the copy, in an owner of hidden pages, or an access to a region."""
    if any(JUDGED.search(line) or OWNER.match(line) for line in crash):
        return True
    accessed = next((int(found[1], 16) for line in crash if (found := ADDRESS.search(line))), None)
    return accessed is not None and any(
        0 <= accessed - int(region["address"], 16) < BLOCK_BYTES.get(region["wish"].partition(":")[0], 1 << 21)
        for region in record.regions
    )


def _where(crash: Sequence[str], seen: Watched) -> str:
    place = next((line.partition("RIP: 0010:")[2].split("+")[0] for line in crash if line.startswith("RIP: 0010:")), "")
    when = "in the copy" if seen.after is None else "after the copy"
    return f"{when}, in {place}" if place else when


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
