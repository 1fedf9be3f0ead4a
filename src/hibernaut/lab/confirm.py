# SPDX-License-Identifier: GPL-2.0-or-later
"""What the model foretells of some regions, tried on a real kernel: a guest is arranged so, and hibernates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.exploration.layouts import Side, Structure
from hibernaut.exploration.operations import EXHAUST, HIBERNATE
from hibernaut.exploration.replay import FamilyMachine, Played
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.conformance import TIME_STAMP, reachable_tables
from hibernaut.lab.scenario import (
    LOG_NAME,
    RESUMED_LOG_NAME,
    SPARE_NAME,
    Hibernated,
    Lab,
    Record,
    Resumed,
    see_arranged,
)
from hibernaut.lab.variants import MOST_REGIONS, REGIONS, Variant
from hibernaut.linux import DirectMap
from hibernaut.linux.environment import Kind
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop
from hibernaut.swsusp import open_image
from hibernaut.volumes.output import write_file

__all__ = ["Confirmation", "Prediction", "Torn", "cannot_arrange", "confirm", "died_of_a_list", "foretold", "judge"]

STOCK_WAY = "remap"
"""How a stock kernel copies."""

ON_A_NODE = (Structure.MEM_MAP, Structure.ZONE, Structure.FREE)
"""What of the allocator's a guest has together, on the node that pages come from."""

MOST_ABOVE = 4
"""Blocks below the PMD tables that a guest of 256 MiB has free for certain (Linux 6.1; newer ones have eight)."""

TABLES, MAP, DATA = "tables-closed", frozenset({"same-direct-map", "same-translations"}), "same-data"
LOOKED_AT = frozenset({TABLES, *MAP, DATA})
"""The invariants of a machine that was saved whose breaking shows: in the image, or to the resumed guest."""

LISTS = frozenset({"lists-whole", "allocator-sound"})
"""Those whose breaking shows if the resumed guest dies of it."""

LIST_CORRUPTION = re.compile(r"list_(?:add|del) corruption")
"""What a kernel built with CONFIG_DEBUG_LIST says before it dies of a link (lib/list_debug.c)."""
OF_THE_ALLOCATOR = re.compile(r"\b(?:free_unref_page|free_frozen_page|free_pcppages_bulk|__free_one_page|_*rmqueue)")
"""Functions that put pages on its lists and take them off (mm/page_alloc.c of 6.1, 6.12 and 7.3)."""

RESTORED = re.compile(r"restore of devices complete|Calling \w+_resume\+")
"""What only a kernel says that came back from an image of a guest with debug messages of power management switched on
(drivers/base/power/main.c and syscore.c)."""
DEATH_OF_A_LIST = re.compile(r"__rmqueue_pcplist|rmqueue_bulk")
"""Deaths of the model's that are of a link of the allocator's lists."""

SAVED = re.compile(r"hibernation: Image created")
BEGINS = re.compile(r"hibernation: hibernation entry")
FATAL = re.compile(r"BUG: ")
FATAL_LINES = 4
"""Of a page fault: BUG, two of #PF, the entries (`show_fault_oops`, arch/x86/mm/fault.c)."""
TELLING = re.compile(
    rf"{re.escape(FAILED_TO_REMAP)}|BUG: |#PF: |PGD |CPA|WARNING: |hlab_region: .*gets nothing|Kernel panic|Oops"
)
INJECTION = "hlab_region: "
LAST_ENTRY = re.compile(r"(?=PGD ).*?(\w+) (\S+)$")
"""What an address's walk ends with (`dump_pagetable`, the same file)."""
NUMBER = re.compile(r"\b(0x)?[0-9a-f]{4,}\b")
# What a resumed guest's verdict says is not as it was (`scenario`); a table that is not there is always garbage.
GARBAGE = re.compile(r"direct map garbage: ")
OTHER_MAP = re.compile(r"direct map(?: garbage| changed)?: ")
OTHER_DATA = re.compile(r"data: ")
IN_THE_COPY = re.compile(r"(?<!\? )\bswsusp_save\+0x")


@dataclass(frozen=True)
class Prediction:
    """What the model says that a kernel does.

    Attributes:
        regions: what is out of the direct map, in the module's words (`variants.REGIONS`), in ascending order of
            address.
        fail_allocations: how many allocations for splits fail during the copy, the first ones.
        outcome: "saved" or "died".
        kernel_lines: what the modelled kernel printed (`EventLog.kernel_lines`); numbers in it are the model's own.
        violated: names of the invariants that were broken (`explore.INVARIANTS`).
        pages: where the array of struct page, the heads of the free lists and the free pages lie, seen from the
            regions: above or below.
        lists: where the CPUs' own lists lie.
        allocates: whether pages are allocated on the resumed machine.
        dies_of: what it dies of then; empty if it lives.
    """

    regions: tuple[str, ...]
    fail_allocations: int
    outcome: str
    kernel_lines: tuple[str, ...]
    violated: tuple[str, ...]
    pages: str = "above"
    lists: str = "above"
    allocates: bool = False
    dies_of: str = ""

    @property
    def variant(self) -> Variant:
        """The guest that is so."""
        guest = Variant(
            "confirm",
            f"regions {' '.join(self.regions) or 'none'}, {self.fail_allocations} failing allocations",
            compressor="none",
            regions=self.regions,
            fail_allocations=self.fail_allocations,
            pages=self.pages,
            lists=self.lists,
        )
        return replace(guest, memory_mib=2 * guest.memory_mib) if guest.two_nodes else guest


@dataclass(frozen=True)
class Confirmation:
    """What a real kernel did.

    Attributes:
        agrees: whether that is what was foretold.
        release: the kernel's.
        said: what it printed that bears on it, as it stands in its log.
        seen: one sentence: what was seen; where it does not agree, instead of what.
    """

    agrees: bool
    release: str
    said: tuple[str, ...]
    seen: str


@dataclass(frozen=True)
class Torn:
    """What an image lacks of its own page tables.

    Attributes:
        tables: frames of tables that its tables name and that it does not have, ascending.
        blocks: first frames of the regions whose pages those tables would map.
    """

    tables: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()

    def __str__(self) -> str:
        blocks = f", for block {' '.join(map(hex, self.blocks))}" if self.blocks else ""
        return f"its image lacks table {' '.join(map(hex, self.tables))}, which its own page tables name{blocks}"


def foretold(played: Played) -> Prediction:
    """What a run says that a kernel does.

    Raises:
        LabUnavailable: nothing that a stock kernel in a guest could be asked.
    """
    machine, run = played.written.machine, played.run
    if not isinstance(machine, FamilyMachine):
        raise LabUnavailable("this run begins on somebody's machine: a guest is no such machine")
    ways = {operation.way for operation in played.written.operations if operation.do == HIBERNATE}
    if ways != {STOCK_WAY}:
        raise LabUnavailable(f"this run goes by {', '.join(sorted(ways))}; a stock kernel copies by {STOCK_WAY}")
    done = [operation.do for operation in played.written.operations]
    # What is allocated on the resumed machine needs no arranging: a guest that comes back does nothing else.
    if done not in ([HIBERNATE], [HIBERNATE, EXHAUST]):
        raise LabUnavailable(
            f"in this run there is more than a hibernation ({', '.join(done)}): a guest does no more, but for "
            "allocations afterwards"
        )
    if run.status == "refused":
        raise LabUnavailable("in this run the kernel refuses to hibernate: nothing to be seen in a guest")
    chosen = machine.chosen()[0]
    sides = {one: chosen.where[one] if chosen.regions else Side.ABOVE for one in (*ON_A_NODE, Structure.PCP)}
    if len({sides[one] for one in ON_A_NODE}) > 1:
        said = ", ".join(f"{one.word} {sides[one].word}" for one in ON_A_NODE)
        raise LabUnavailable(f"in this run what a guest has on one node lies on both sides of the regions ({said})")
    if chosen.remembered:
        raise LabUnavailable("in this run a CPU remembers what it should not: that cannot be arranged in a guest")
    failing = [choice.subject for choice in played.schedule if choice.kind == Kind.ALLOCATION_FAILS and choice.value]
    if failing != list(range(1, len(failing) + 1)):
        raise LabUnavailable(f"in this run allocation {failing[-1]} fails: in a guest only the first ones can")
    dies_later = run.status == "died" and run.snapshot is not None
    return Prediction(
        regions=tuple(map(str, chosen.regions)),
        fail_allocations=len(failing),
        outcome="saved" if dies_later else run.status,
        kernel_lines=_of_the_copy(run.machine.log.kernel_lines) if dies_later else run.machine.log.kernel_lines,
        violated=played.outcome.violated,
        pages=sides[Structure.MEM_MAP].word,
        lists=sides[Structure.PCP].word,
        allocates=EXHAUST in done,
        dies_of=played.outcome.crash if dies_later else "",
    )


def cannot_arrange(prediction: Prediction) -> str | None:
    """Why a prediction cannot be tried on the laboratory's guests; None if it can."""
    regions = prediction.regions
    unknown = [one for one in regions if one not in REGIONS]
    if unknown:
        return f"the module cannot take out {unknown[0]} (it can: {', '.join(REGIONS)})"
    if len(regions) > MOST_REGIONS:
        return f"{len(regions)} regions, the module takes out {MOST_REGIONS} at most"
    above = [one.endswith(":above") for one in regions]
    if sum(above) > MOST_ABOVE:
        return f"{sum(above)} regions below their PMD table, a guest has room for {MOST_ABOVE}"
    if above != sorted(above, reverse=True):
        return "a guest's PMD tables lie in one place: no region above its table is followed by one below"
    if prediction.variant.two_nodes and any(above):
        return "where the allocator's pages lie below, or the CPUs' lists, a guest has its PMD tables below all regions"
    if prediction.dies_of and not DEATH_OF_A_LIST.search(prediction.dies_of):
        return f"nothing in the laboratory shows whether a resumed machine dies of {prediction.dies_of}"
    if prediction.outcome not in ("saved", "died"):
        return f"outcome {prediction.outcome!r}, a guest's kernel can only save or die"
    if (
        prediction.outcome == "saved"
        and not prediction.allocates
        and prediction.violated
        and not LOOKED_AT.intersection(prediction.violated)
    ):
        return f"nothing in the laboratory shows whether this holds: {', '.join(prediction.violated)}"
    return None


def confirm(lab: Lab, prediction: Prediction, folder: Path) -> Confirmation:
    """Arrange a guest as foretold, let it hibernate, resume it from its own image if it makes one, and judge.

    Args:
        lab: the laboratory and its kernel.
        prediction: one that can be arranged (`cannot_arrange`).
        folder: an existing folder for the guest's disks, record, and what its kernel printed.

    Raises:
        LabUnavailable: something is missing here.
        LabError: it cannot be arranged, or the guest does not do as it is told.
        HibernautError: the image is not what it should be.
    """
    reason = cannot_arrange(prediction)
    if reason:
        raise LabError(f"this cannot be arranged: {reason}")
    done = lab.hibernate(prediction.variant, folder)
    write_file(folder / LOG_NAME, done.log.encode())
    record = done.record
    if record.regions:
        see_arranged(record)
    blocks = _blocks(record)
    if blocks != sorted(blocks):
        raise LabError(f"the guest's regions do not ascend: {' '.join(map(hex, blocks))}")
    if done.outcome != "hibernated" or prediction.outcome != "saved":
        return judge(prediction, done)
    torn = _torn(done)
    disks = [done.image, done.folder / SPARE_NAME]
    resumed = lab.resume(record, disks, folder, partition=record.partition, offset=record.offset)
    write_file(folder / RESUMED_LOG_NAME, resumed.log.encode())
    return judge(prediction, done, torn, resumed)


def judge(
    prediction: Prediction, done: Hibernated, torn: Torn | None = None, resumed: Resumed | None = None
) -> Confirmation:
    """Whether a guest did what was foretold.

    Args:
        prediction: that.
        done: how its hibernation ended.
        torn: what its image lacks, if it made one.
        resumed: what it found when it was resumed from that, if it was.
    """
    said = _since_it_began(done.log)
    telling = tuple(line for line in said if TELLING.match(line))
    if prediction.outcome == "died":
        wrong, seen = list(_not_dead(prediction, done, said)), _of_death(said)
    else:
        wrong, seen = list(_not_saved(prediction, done, said, torn, resumed)), _of_saving(said, torn, resumed)
    shown = LOOKED_AT | {"no-fault"} | (LISTS if prediction.dies_of else set())
    unseen = [name for name in prediction.violated if name not in shown]
    if unseen and not wrong:
        seen += f" (nothing shows whether this is broken: {', '.join(unseen)})"
    return Confirmation(not wrong, done.record.release, telling, "; ".join(wrong) or seen)


def _not_dead(prediction: Prediction, done: Hibernated, said: Sequence[str]) -> Iterator[str]:
    """What is otherwise than a death that was foretold. A guest that "died" left no image on its disk."""
    if done.outcome != "died":
        reason = f": {done.reason}" if done.reason else ""
        yield f"the guest was to die in the copy, it {_did(done.outcome)}{reason}"
        return
    yield from _other_words(prediction.kernel_lines, said)
    fatal = next((number for number, line in enumerate(said) if FATAL.match(line)), None)
    if fatal is None:
        yield f"the guest died without a fault of its kernel's: {done.reason}"
    elif not any(IN_THE_COPY.search(line) for line in said[fatal:]):
        yield "the guest died, but not in swsusp_save"


def _not_saved(
    prediction: Prediction, done: Hibernated, said: Sequence[str], torn: Torn | None, resumed: Resumed | None
) -> Iterator[str]:
    """What is otherwise than an image that was foretold, and what a guest finds that resumes from it."""
    if done.outcome != "hibernated" or torn is None or resumed is None:
        yield f"the guest was to hibernate, it {_did(done.outcome)}: {done.reason}"
        return
    yield from _other_words(prediction.kernel_lines, said)
    violated = set(prediction.violated)
    map_broken = not violated.isdisjoint({TABLES, *MAP})
    if TABLES in violated and not torn.tables:
        yield "its image has every page table that its page tables name"
    if torn.tables and not map_broken:
        yield str(torn)
    if prediction.dies_of:
        if not died_of_a_list(resumed):
            yield f"the guest that came back was to die of its free lists, it did not: {resumed.reason}"
        return
    if "pages" not in resumed.facts:
        yield f"it did not come back: {resumed.reason}"
        return
    other_map = GARBAGE if TABLES in violated else OTHER_MAP
    found = bool(other_map.search(resumed.reason)), bool(OTHER_DATA.search(resumed.reason))
    if found != (map_broken, DATA in violated):
        yield f"the guest that came back found: {resumed.reason}"


def died_of_a_list(resumed: Resumed) -> bool:
    """Whether a guest that came back died of a link of the allocator's lists, in the allocator."""
    words = LIST_CORRUPTION.search(resumed.log)
    if words is None or not resumed.reason.startswith(f"dead: {words[0]}"):
        return False
    trace = resumed.log[words.end() :].partition("---[ end trace")[0]
    return RESTORED.search(resumed.log[: words.start()]) is not None and OF_THE_ALLOCATOR.search(trace) is not None


def _of_the_copy(lines: Sequence[str]) -> tuple[str, ...]:
    """What a machine had printed when it was saved, of all that it printed until it died."""
    saved = next(number for number, line in enumerate(lines) if SAVED.search(line))
    return tuple(lines[: saved + 1])


def _of_death(said: Sequence[str]) -> str:
    kinds = [kind for kind in _kinds(said) if not kind.startswith("#PF: ")]
    return f"died in swsusp_save, no image on its disk: {', then '.join(kinds)}"


def _of_saving(said: Sequence[str], torn: Torn | None, resumed: Resumed | None) -> str:
    lacking = f"; {torn}" if torn and torn.tables else ", every page table in its image"
    warned = f", saying {_list(_kinds(said))}" if _kinds(said) else " without a warning"
    came_back = "not resumed" if resumed is None else resumed.reason
    if resumed and LIST_CORRUPTION.search(resumed.log):
        came_back = f"resumed, then {came_back}"
    return f"hibernated{warned}{lacking}; {came_back}"


def _did(outcome: str) -> str:
    return {"hibernated": "hibernated", "died": "died", "refused": "refused to"}.get(outcome, outcome)


def _other_words(foretold: Sequence[str], said: Sequence[str]) -> Iterator[str]:
    """The kinds of what the model's kernel printed, and of what the guest's did, in order."""
    model, guest = _kinds(foretold), _kinds(said)
    if model != guest:
        yield f"the kernel says {_list(guest)}, the model {_list(model)}"


def _kinds(lines: Sequence[str]) -> list[str]:
    """The telling lines up to the first fault, without what differs from one machine to another."""
    fatal = next((number for number, line in enumerate(lines) if FATAL.match(line)), None)
    before = lines if fatal is None else lines[: fatal + FATAL_LINES]
    return [_kind(line) for line in before if TELLING.match(line) and not line.startswith(INJECTION)]


def _kind(line: str) -> str:
    """A line without addresses and values; of the entries on the way to an address, which one decides."""
    if line.startswith("BUG: "):
        return re.split(r"(?: for|,) address", line)[0]
    entry = LAST_ENTRY.match(line)
    if entry:
        return f"{entry[1]} entry {'zero' if entry[2] == '0' else 'not zero'}"
    return NUMBER.sub("N", line)


def _since_it_began(log: str) -> list[str]:
    """The lines of a kernel's log from where it began to hibernate, without time stamps."""
    lines = [TIME_STAMP.sub("", line).rstrip() for line in log.splitlines()]
    begins = next((number for number, line in enumerate(lines) if BEGINS.search(line)), 0)
    return lines[begins:]


def _torn(done: Hibernated) -> Torn:
    """Which page tables the guest's own image lacks."""
    record = done.record
    with open_image(done.image, offset=record.offset, partition=record.partition) as image:
        memory, cr3 = image.memory(), image.info.cr3
        found = DirectMap.find(memory, cr3)
        _, missing = reachable_tables(memory, cr3, found.levels)
        blocks = [
            block
            for block in _blocks(record)
            if (walk := found.tables.walk(found.vaddr(block))).stop == Stop.TABLE_MISSING and walk.level == Level.PMD
        ]
    return Torn(tuple(sorted(missing)), tuple(blocks))


def _blocks(record: Record) -> list[int]:
    return [int(region["block"], 16) for region in record.regions]


def _list(kinds: Sequence[str]) -> str:
    return " / ".join(kinds) or "nothing"
