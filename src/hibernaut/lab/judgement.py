# SPDX-License-Identifier: GPL-2.0-or-later
"""The judgement on a prediction: whether a guest's kernel did what the model predicts, by its log, image and resume."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.kernel_log import FAULT_LINES, log_lines
from hibernaut.lab.laboratory import Hibernated, Resumed
from hibernaut.lab.prediction import LOOKED_AT, MAP_INVARIANTS, Prediction

__all__ = ["Confirmation", "TornImage", "crashed_in_lists", "judge"]

LIST_INVARIANTS = frozenset({"lists-whole", "allocator-sound"})
"""Invariants whose violation shows if the resumed guest crashes with it."""

LIST_CORRUPTION = re.compile(r"list_(?:add|del) corruption")
"""Message of a kernel built with CONFIG_DEBUG_LIST before it crashes on a link (lib/list_debug.c)."""
ALLOCATOR_FUNCTION = re.compile(r"\b(?:free_unref_page|free_frozen_page|free_pcppages_bulk|__free_one_page|_*rmqueue)")
"""Functions that put pages on the allocator's lists and take them off (mm/page_alloc.c of 6.1, 6.12 and 7.3)."""

RESTORED = re.compile(r"restore of devices complete|Calling \w+_resume\+")
"""Messages that only a kernel resumed from an image prints, if its guest enabled power-management debug messages
(drivers/base/power/main.c and syscore.c)."""

HIBERNATION_ENTRY = re.compile(r"hibernation: hibernation entry")
FATAL = re.compile(r"BUG: ")
TELLING = re.compile(
    rf"{re.escape(FAILED_TO_REMAP)}|BUG: |#PF: |PGD |CPA|WARNING: |hlab_region: .*injected|Kernel panic|Oops"
)
INJECTION = "hlab_region: "
LAST_ENTRY = re.compile(r"(?=PGD ).*?(\w+) (\S+)$")
"""Last entry of an address's walk (`dump_pagetable`, arch/x86/mm/fault.c)."""
NUMBER = re.compile(r"\b(0x)?[0-9a-f]{4,}\b")
IN_THE_COPY = re.compile(r"(?<!\? )\bswsusp_save\+0x")
# Findings in the reason of a resume (`verification`); an absent table always shows as garbage.
GARBAGE = re.compile(r"direct map garbage: ")
OTHER_MAP = re.compile(r"direct map(?: garbage| changed)?: ")
OTHER_DATA = re.compile(r"data: ")


@dataclass(frozen=True)
class Confirmation:
    """Outcome of a confirmation on a real kernel.

    Attributes:
        agrees: whether the kernel did what the model predicts.
        release: release of the kernel.
        said: its messages that bear on the prediction, as in its log.
        seen: one sentence: what was seen; without agreement, what differs.
    """

    agrees: bool
    release: str
    said: tuple[str, ...]
    seen: str


@dataclass(frozen=True)
class TornImage:
    """The page tables that an image lacks.

    Attributes:
        tables: frames of tables that the image's own tables point to and that it does not have, ascending.
        blocks: first frames of the regions whose pages those tables map.
    """

    tables: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()

    def __str__(self) -> str:
        blocks = f", for block {' '.join(map(hex, self.blocks))}" if self.blocks else ""
        return f"its image lacks table {' '.join(map(hex, self.tables))}, which its own page tables point to{blocks}"


def judge(
    prediction: Prediction, done: Hibernated, torn: TornImage | None = None, resumed: Resumed | None = None
) -> Confirmation:
    """Return whether a guest did what was predicted.

    Args:
        prediction: the prediction.
        done: outcome of its hibernation.
        torn: tables that its image lacks, if it made an image.
        resumed: outcome of the resume from that image, if there was one.
    """
    printed = _since_entry(done.log)
    telling = tuple(line for line in printed if TELLING.match(line))
    if prediction.outcome == "died":
        wrong, seen = list(_crash_differences(prediction, done, printed)), _crash_text(printed)
    else:
        wrong = list(_image_differences(prediction, done, printed, torn, resumed))
        seen = _image_text(printed, torn, resumed)
    shown = LOOKED_AT | {"no-fault"} | (LIST_INVARIANTS if prediction.resumed_crash else set())
    unseen = [name for name in prediction.violated if name not in shown]
    if unseen and not wrong:
        seen += f" (not observable: {', '.join(unseen)})"
    return Confirmation(not wrong, done.record.release, telling, "; ".join(wrong) or seen)


def crashed_in_lists(resumed: Resumed) -> bool:
    """Return whether a resumed guest crashed on a link of the allocator's lists, in the allocator."""
    message = LIST_CORRUPTION.search(resumed.log)
    if message is None or not resumed.reason.startswith(f"crashed: {message[0]}"):
        return False
    trace = resumed.log[message.end() :].partition("---[ end trace")[0]
    return RESTORED.search(resumed.log[: message.start()]) is not None and ALLOCATOR_FUNCTION.search(trace) is not None


def _crash_differences(prediction: Prediction, done: Hibernated, printed: Sequence[str]) -> Iterator[str]:
    """Yield the differences from a predicted crash in the copy, after which there is no image on the disk."""
    if done.outcome != "died":
        yield f"predicted a crash in the copy; the guest {done.summary}"
        return
    yield from _message_differences(prediction.kernel_lines, printed)
    fatal = _first_fault(printed)
    if fatal is None:
        yield f"the guest crashed without a fault of its kernel: {done.reason}"
    elif not any(IN_THE_COPY.search(line) for line in printed[fatal:]):
        yield "the guest crashed, but not in swsusp_save"


def _image_differences(
    prediction: Prediction,
    done: Hibernated,
    printed: Sequence[str],
    torn: TornImage | None,
    resumed: Resumed | None,
) -> Iterator[str]:
    """Yield the differences from a predicted image and from the predicted resume of it."""
    if done.outcome != "hibernated" or torn is None or resumed is None:
        yield f"predicted an image; the guest {done.summary}"
        return
    yield from _message_differences(prediction.kernel_lines, printed)
    violated = set(prediction.violated)
    map_broken = not violated.isdisjoint(MAP_INVARIANTS)
    tables_broken = "tables-closed" in violated
    if tables_broken and not torn.tables:
        yield "its image has every page table that its page tables point to"
    if torn.tables and not map_broken:
        yield str(torn)
    if prediction.resumed_crash:
        if not crashed_in_lists(resumed):
            yield f"predicted a crash of the resumed guest in its free lists, it did not: {resumed.reason}"
        return
    if "pages" not in resumed.facts:
        yield f"it did not resume: {resumed.reason}"
        return
    other_map = GARBAGE if tables_broken else OTHER_MAP
    found = bool(other_map.search(resumed.reason)), bool(OTHER_DATA.search(resumed.reason))
    if found != (map_broken, "same-data" in violated):
        yield f"the resumed guest found: {resumed.reason}"


def _message_differences(predicted: Sequence[str], printed: Sequence[str]) -> Iterator[str]:
    """Yield the difference between the kinds of messages of the model's kernel and of the guest's, in order."""
    model, guest = _kinds(predicted), _kinds(printed)
    if model != guest:
        yield f"the kernel prints {_joined(guest)}, the model {_joined(model)}"


def _crash_text(printed: Sequence[str]) -> str:
    kinds = [kind for kind in _kinds(printed) if not kind.startswith("#PF: ")]
    return f"crashed in swsusp_save, no image on its disk: {', then '.join(kinds)}"


def _image_text(printed: Sequence[str], torn: TornImage | None, resumed: Resumed | None) -> str:
    lacking = f"; {torn}" if torn and torn.tables else ", every page table in its image"
    kinds = _kinds(printed)
    warned = f", printing {_joined(kinds)}" if kinds else " without a warning"
    outcome = "not resumed" if resumed is None else resumed.reason
    if resumed and LIST_CORRUPTION.search(resumed.log):
        outcome = f"resumed, then {outcome}"
    return f"hibernated{warned}{lacking}; {outcome}"


def _kinds(lines: Sequence[str]) -> list[str]:
    """Return the telling lines up to the first fault, without values that differ between machines."""
    fatal = _first_fault(lines)
    before = lines if fatal is None else lines[: fatal + FAULT_LINES]
    return [_kind(line) for line in before if TELLING.match(line) and not line.startswith(INJECTION)]


def _kind(line: str) -> str:
    """Return a line without addresses and values; of the entries of a walk, the one that decides."""
    if line.startswith("BUG: "):
        return re.split(r"(?: for|,) address", line)[0]
    entry = LAST_ENTRY.match(line)
    if entry:
        return f"{entry[1]} entry {'zero' if entry[2] == '0' else 'not zero'}"
    return NUMBER.sub("N", line)


def _first_fault(lines: Sequence[str]) -> int | None:
    return next((number for number, line in enumerate(lines) if FATAL.match(line)), None)


def _since_entry(log: str) -> list[str]:
    """Return the lines of a kernel's log from the start of the hibernation, without time stamps."""
    lines = log_lines(log)
    begins = next((number for number, line in enumerate(lines) if HIBERNATION_ENTRY.search(line)), 0)
    return lines[begins:]


def _joined(kinds: Sequence[str]) -> str:
    return " / ".join(kinds) or "nothing"
