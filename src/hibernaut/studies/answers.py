# SPDX-License-Identifier: GPL-2.0-or-later
"""What the mailing list could not know, asked of every run: the studies and claims behind `docs/answers.md`.

A study is a sweep. A claim is a statement about every machine of some studies, by some ways, as a function: it is
evaluated, never assumed, and comes with a run that shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hibernaut.exploration.families import ChosenMachine, Family
from hibernaut.exploration.layouts import RegionKind, Side, Structure
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.play import FamilyMachine, Played, Written, play
from hibernaut.exploration.records import WayResult
from hibernaut.exploration.results import read_records
from hibernaut.exploration.run import Outcome
from hibernaut.exploration.sweep import Progress, run_sweep
from hibernaut.exploration.tally import Counterexample, Tally
from hibernaut.hibernation.ways import MUTANTS
from hibernaut.linux.environment import Replay
from hibernaut.linux.rules import LINES

__all__ = ["CLAIMS", "STUDIES", "Answers", "Claim", "Judged", "Shown", "Studied", "Study", "Trial", "answer"]

BOTH = (Side.ABOVE, Side.BELOW)
WAYS_IN_QUESTION = (
    "remap",
    "fixmap",
    "fixmap-v1",
    "fixmap-v3",
    "remap-generic",
    "remap-generic-zero",
    "remap-generic-abort",
    "remap-whole",
    "reserved:9",
)
SPLITS = {RegionKind.BLOCK: 1, RegionKind.GIB: 3}
"""How many tables it takes to map the pages of a region that are saved: a GiB has them in two blocks."""
MOST_SPLITS = 9
"""Of three regions of 1 GiB."""


@dataclass(frozen=True)
class Study:
    """A sweep with a name.

    Attributes:
        name: short.
        asks: what it is for, a clause.
        sweep: what is run.
    """

    name: str
    asks: str
    sweep: Sweep


STUDIES: tuple[Study, ...] = (
    Study(
        "regions",
        "all layouts of up to three regions, every allocation failing or not, every stale translation used or not",
        Sweep(Family(regions=(0, 1, 2, 3), remembered=(False, True)), (*WAYS_IN_QUESTION, *MUTANTS)),
    ),
    Study(
        "kinds",
        "what else a page can be: among 4K entries that are present, without an entry, without a table",
        Sweep(
            Family(regions=(0, 1, 2), kinds=tuple(RegionKind), root=BOTH),
            (*WAYS_IN_QUESTION, *MUTANTS),
        ),
    ),
    Study(
        "places",
        "where the kernel's own pages lie, and what becomes of the machine afterwards",
        Sweep(
            Family(
                regions=(0, 1),
                kinds=(RegionKind.BLOCK, RegionKind.GIB),
                root=BOTH,
                mem_map=BOTH,
                zone=BOTH,
                pcp=BOTH,
                free=BOTH,
                cpus=(1, 2),
            ),
            (*WAYS_IN_QUESTION, *MUTANTS),
            allocations_after=64,
        ),
    ),
    Study(
        "reserve",
        "how many pages for tables have to be reserved",
        Sweep(
            Family(regions=(0, 1, 2, 3), kinds=(RegionKind.BLOCK, RegionKind.GIB), free=BOTH),
            tuple(f"reserved:{pages}" for pages in range(MOST_SPLITS + 1)),
        ),
    ),
    Study(
        "6.13-rc",
        "2 MiB blocks out of the direct map, as 6.13-rc's execmem took them, and where the allocator's own pages lie",
        Sweep(
            Family(
                regions=(0, 1, 2, 3),
                kinds=(RegionKind.BLOCK,),
                mem_map=BOTH,
                zone=BOTH,
                pcp=BOTH,
                free=BOTH,
                cpus=(1, 2),
            ),
            ("remap", "fixmap", "remap-whole"),
            rules="6.13-rc",
            allocations_after=64,
        ),
    ),
    Study(
        "two nodes",
        "a machine of two NUMA nodes: pages come from the lower one, the regions and the CPU are on the upper one",
        Sweep(
            Family(
                regions=(0, 1, 2, 3),
                kinds=(RegionKind.BLOCK, RegionKind.GIB),
                tables=(Side.BELOW,),
                mem_map=(Side.BELOW,),
                zone=(Side.BELOW,),
                pcp=(Side.ABOVE,),
                free=(Side.BELOW,),
                cpus=(1, 2),
            ),
            ("remap", "fixmap", "remap-whole"),
            allocations_after=64,
        ),
    ),
    *(
        Study(
            f"line {rules.line}",
            f"whether it is otherwise by the rules of {rules.line}",
            Sweep(
                Family(regions=(0, 1, 2), kinds=tuple(RegionKind)),
                ("remap", "fixmap", "fixmap-v3", "remap-whole"),
                rules=rules.line,
            ),
        )
        for rules in LINES[1:]
    ),
)


@dataclass(frozen=True)
class Trial:
    """One machine of a study, by one way: what a claim speaks of.

    Attributes:
        machine: the machine.
        name: the way's name.
        way: what came of it.
    """

    machine: ChosenMachine
    name: str
    way: WayResult

    def ends(self, which: Callable[[Outcome], bool]) -> bool:
        """Whether any of its runs ends so."""
        return any(which(ending.outcome) for ending in self.way.endings)

    def has(self, *kinds: RegionKind) -> bool:
        """Whether the machine has such a region."""
        return any(region.kind in kinds for region in self.machine.regions)

    @property
    def splits(self) -> int:
        """How many tables mapping its saved pages one by one takes."""
        return sum(SPLITS.get(region.kind, 0) for region in self.machine.regions)

    @property
    def split_above(self) -> bool:
        """Whether a large entry that has to be split lies in a table above its region."""
        return any(region.kind in SPLITS and region.tables == Side.ABOVE for region in self.machine.regions)

    @property
    def first_without_entry(self) -> RegionKind | None:
        """The kind of the first region that has no entry, or no table."""
        kinds = (region.kind for region in self.machine.regions)
        return next((kind for kind in kinds if kind in (RegionKind.NONE, RegionKind.NO_TABLE)), None)

    def below(self, structure: Structure) -> bool:
        """Whether something of the kernel's lies below all regions."""
        return self.machine.where[structure] == Side.BELOW

    @property
    def reserve(self) -> int:
        """The size of its pool, by `reserved:N`."""
        return int(self.name.partition(":")[2])


def _clean(outcome: Outcome) -> bool:
    return not outcome.violated


def _loses(outcome: Outcome) -> bool:
    return outcome.loses


def _died(outcome: Outcome) -> bool:
    return outcome.status == "died"


def _torn(outcome: Outcome) -> bool:
    return "tables-closed" in outcome.violated


def _skipped(outcome: Outcome) -> bool:
    return outcome.status == "saved" and "every-listed-page" in outcome.violated


def _lists(outcome: Outcome) -> bool:
    return "lists-whole" in outcome.violated


def _null_in_pcplist(outcome: Outcome) -> bool:
    return "NULL" in outcome.crash and "__rmqueue_pcplist" in outcome.crash


def _dies_later(outcome: Outcome) -> bool:
    return _died(outcome) and _lists(outcome)


@dataclass(frozen=True)
class Claim:
    """A statement about every machine of some studies.

    Attributes:
        name: of its file.
        title: the claim, a sentence.
        says: what is meant, exactly: what `holds` computes.
        studies: names of the studies that it is about.
        ways: names of the ways.
        holds: whether it is so of one machine by one way.
        shows: the way, and which of its ends, of the run that comes with it: the shortest such run.
        plays: another way by which that run's machine is played instead, with every choice the one without
            interference.
    """

    name: str
    title: str
    says: str
    studies: tuple[str, ...]
    ways: tuple[str, ...]
    holds: Callable[[Trial], bool]
    shows: tuple[str, Callable[[Outcome], bool]]
    plays: str | None = None


_ALL = tuple(study.name for study in STUDIES)
_LINES = tuple(study.name for study in STUDIES if study.name.startswith("line "))

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "fixmap-is-safe",
        "Through a fixmap slot, with the NULL check, every page is saved in every run, and nothing else changes.",
        "no run of `fixmap` violates any invariant, in any study; what comes with it is Remap's shortest torn run, "
        "played through the slot",
        tuple(name for name in _ALL if name != "reserve"),
        ("fixmap",),
        lambda trial: not trial.ends(lambda outcome: not _clean(outcome) or outcome.status != "saved"),
        ("remap", _torn),
        "fixmap",
    ),
    Claim(
        "fixmap-as-posted-dies-without-a-table",
        "As posted (v1 and v3) the series still dies where a page has no PTE table: of a NULL dereference, before the "
        "slot is used.",
        "`fixmap-v1` and `fixmap-v3` break an invariant exactly on machines with a region without a table, and then "
        "only by dying while reading the NULL entry",
        ("kinds", *_LINES),
        ("fixmap-v1", "fixmap-v3"),
        lambda trial: (
            trial.ends(lambda outcome: not _clean(outcome)) == trial.has(RegionKind.NO_TABLE)
            and not trial.ends(lambda outcome: not _clean(outcome) and "reading the NULL entry" not in outcome.crash)
        ),
        ("fixmap-v3", _died),
    ),
    Claim(
        "the-null-check-cures-it",
        'One line cures that: `kernel_page_present` has to take no entry for "not present".',
        "`fixmap`, which has that line and differs from `fixmap-v3` in nothing else, is clean on all machines with a "
        "region without a table; what comes with it is the run in which `fixmap-v3` dies, with the line",
        ("kinds", *_LINES),
        ("fixmap",),
        lambda trial: not trial.has(RegionKind.NO_TABLE) or not trial.ends(lambda outcome: not _clean(outcome)),
        ("fixmap-v3", _died),
        "fixmap",
    ),
    Claim(
        "remap-dies-after-a-warning",
        "Remap, first failure: an allocation for a split fails, the kernel warns once and dies of a page fault in the "
        "copy.",
        "`remap` dies in some run exactly on machines with a region of 2 MiB or 1 GiB in one entry, and never without "
        "the warning",
        ("regions",),
        ("remap",),
        lambda trial: (
            trial.ends(_died) == (trial.splits > 0)
            and not trial.ends(lambda outcome: _died(outcome) and not outcome.warned)
        ),
        ("remap", lambda outcome: _died(outcome) and outcome.warned),
    ),
    Claim(
        "remap-dies-without-a-warning",
        "Remap, second failure: a page without an entry. CPA ignores it and reports success; no warning, and a page "
        "fault in the copy.",
        "on machines whose first region without an entry has a PTE table, `remap` and `remap-whole` have a run that "
        "dies of that page fault without a warning; on machines without such regions they have none",
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
        "where a large entry that has to be split lies in a table above its region; which pages go out of the map is "
        "in the replay",
        ("regions", "6.13-rc"),
        ("remap",),
        lambda trial: trial.ends(lambda outcome: _torn(outcome) and not outcome.warned) == trial.split_above,
        ("remap", lambda outcome: _torn(outcome) and not outcome.warned),
    ),
    Claim(
        "remap-without-a-table-dereferences-null",
        "And where there is no PTE table at all, Remap dies as the series does: of a NULL dereference.",
        "`remap` has a run that dies while reading the NULL entry exactly on machines whose first region without an "
        "entry has no table",
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
        "on machines with something to split, all of it in tables below, every run of `remap` that is saved breaks "
        "`allocator-sound` by a leak, and `same-rights` at most besides",
        ("regions",),
        ("remap",),
        lambda trial: (
            trial.splits == 0
            or trial.split_above
            or not trial.ends(lambda outcome: outcome.status == "saved" and (outcome.loses or _clean(outcome)))
        ),
        ("remap", lambda outcome: outcome.status == "saved" and not outcome.loses and not _clean(outcome)),
    ),
    Claim(
        "remap-whole-is-safe-for-entries",
        "RemapWhole is safe wherever there is an entry: whole regions, and pages among 4K entries that are present.",
        "no run of `remap-whole` violates any invariant on machines without regions that lack an entry or a table",
        ("regions", "kinds", "places", "6.13-rc", *_LINES),
        ("remap-whole",),
        lambda trial: trial.first_without_entry is not None or not trial.ends(lambda outcome: not _clean(outcome)),
        ("remap", _torn),
        "remap-whole",
    ),
    Claim(
        "reserved-needs-enough-pages-above",
        "Reserved loses nothing exactly if there are as many reserved pages as splits, and they lie above what is "
        "split, or its tables lie below.",
        "`reserved:N` has no run that loses or breaks anything exactly on machines whose saved pages take at most N "
        "splits, and where the free pages lie above the regions or no large entry to be split lies in a table above",
        ("reserve",),
        tuple(f"reserved:{pages}" for pages in range(MOST_SPLITS + 1)),
        lambda trial: (
            trial.ends(_loses) == (trial.splits > trial.reserve or (trial.split_above and trial.below(Structure.FREE)))
        ),
        ("reserved:1", lambda outcome: outcome.loses and not _torn(outcome) and not _died(outcome)),
    ),
    Claim(
        "reserved-leaves-traces",
        "And even where it loses nothing, the large page stays split.",
        "`reserved:9` is clean exactly on machines where no large entry lies in a table above its region: where one "
        "does the resumed machine has it split",
        ("regions",),
        ("reserved:9",),
        lambda trial: trial.ends(lambda outcome: not _clean(outcome)) == trial.split_above,
        ("reserved:9", lambda outcome: not _clean(outcome)),
    ),
    Claim(
        "skipping-loses-pages",
        "Policies that skip a page (NULL from `hibernate_map_page`) trade the crash for lost pages in an image that "
        "loads.",
        "`remap-generic` and `remap-generic-zero` never die on machines whose regions have entries, and have a run in "
        "which a listed page is missing exactly on those with something to split",
        ("regions",),
        ("remap-generic", "remap-generic-zero"),
        lambda trial: not trial.ends(_died) and trial.ends(_skipped) == (trial.splits > 0),
        ("remap-generic", _skipped),
    ),
    Claim(
        "aborting-saves-the-machine-not-the-image",
        "Giving up instead loses nothing by a failing allocation, and changes nothing about the torn image.",
        "`remap-generic-abort` never dies, never skips a page, and is torn exactly where `remap` is",
        ("regions",),
        ("remap-generic-abort",),
        lambda trial: not trial.ends(_died) and not trial.ends(_skipped) and trial.ends(_torn) == trial.split_above,
        ("remap-generic-abort", lambda outcome: outcome.status == "refused"),
    ),
    Claim(
        "a-stale-translation-hides-the-failure",
        "A CPU that still remembers the page can hide a failed split: after the warning the page is read all the same.",
        "`remap` has a run that is saved after a warning exactly on machines with something to split whose CPU "
        "remembers the regions from before",
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
        "The allocator's lists are torn exactly where its own pages lie on both sides of the regions, or where it has "
        "a lost table's page for free.",
        "by `remap`, on machines with something to split: where the array of struct page, the list heads and the CPUs' "
        "lists all lie above, no list is torn; where all lie below, exactly if a table is lost (its page is on a list "
        "of free pages); else in every run that is saved",
        ("places", "6.13-rc"),
        ("remap",),
        lambda trial: trial.splits == 0 or _as_the_sides_say(trial),
        ("remap", lambda outcome: _lists(outcome) and not _died(outcome)),
    ),
    Claim(
        "null-on-a-cpu-list",
        "A NULL link on a CPU's own list, found by the next allocation in `__rmqueue_pcplist`, needs the array of "
        "struct page below the blocks and the CPU's list above them.",
        "by `remap`, a resumed machine that dies of a NULL dereference in `__rmqueue_pcplist` has the array of struct "
        "page below the regions and the CPUs' lists above, in every study; and on every such machine with something to "
        "split the next allocations are fatal, if not of NULL then of a poisoned link",
        ("places", "6.13-rc"),
        ("remap",),
        lambda trial: (
            trial.splits == 0
            or (
                trial.ends(lambda outcome: _dies_later(outcome) and "__rmqueue_pcplist" in outcome.crash)
                == (trial.below(Structure.MEM_MAP) and not trial.below(Structure.PCP))
            )
        ),
        ("remap", _null_in_pcplist),
    ),
    Claim(
        "torn-lists-without-a-lost-table",
        "No table needs to be lost for that: on a machine of two NUMA nodes the image can have every page table and be "
        "torn in the allocator alone.",
        "by `remap`, on machines whose pages come from the lower node, regions and CPU being on the upper one, and "
        "whose tables all lie below: no run loses a table, and with something to split every run without a failing "
        "allocation dies of its free lists, once resumed",
        ("two nodes",),
        ("remap",),
        lambda trial: (
            not trial.ends(_torn)
            and not trial.ends(lambda outcome: outcome.status == "saved" and trial.splits > 0)
            and trial.ends(_dies_later) == (trial.splits > 0)
        ),
        ("remap", _dies_later),
    ),
)
"""In the order of the page."""


def _as_the_sides_say(trial: Trial) -> bool:
    """See the claim about torn lists."""
    below = {trial.below(each) for each in (Structure.MEM_MAP, Structure.ZONE, Structure.PCP)}
    torn = trial.ends(lambda outcome: _lists(outcome))
    if below == {False}:
        return not torn
    if below == {True}:
        return torn == trial.split_above
    return torn and not trial.ends(lambda outcome: outcome.status == "saved" and not _lists(outcome))


# ---- asking ----


@dataclass(frozen=True)
class Shown:
    """A run that shows something.

    Attributes:
        study: the study whose machine it is.
        found: how it was found.
        played: the run.
    """

    study: Study
    found: Counterexample
    played: Played


@dataclass(frozen=True)
class Judged:
    """What came of a claim.

    Attributes:
        claim: the claim.
        machines, runs: how many it was asked of.
        against: machines for which it does not hold: how many, and the first one, in words.
        shown: the run that comes with it; None if there is no such run.
    """

    claim: Claim
    machines: int
    runs: int
    against: int
    first_against: str | None
    shown: Shown | None


@dataclass(frozen=True)
class Studied:
    """What came of a study.

    Attributes:
        study: the study.
        tallies: by way.
        path: its records.
    """

    study: Study
    tallies: Mapping[str, Tally]
    path: Path

    def trials(self) -> Iterator[Trial]:
        """Every machine by every way."""
        for _, record in read_records(self.path):
            machine = self.study.sweep.family.choose(Replay(record.layout_choices))
            for name, way in record.ways.items():
                yield Trial(machine, name, way)


@dataclass(frozen=True)
class Answers:
    """Everything that the page says.

    Attributes:
        studied: the studies.
        judged: the claims.
        placements: for the studies with the allocator's places: what was found by `remap` in each, see `placements`.
    """

    studied: tuple[Studied, ...]
    judged: tuple[Judged, ...]
    placements: Mapping[tuple[Side, ...], Placement]


@dataclass
class Placement:
    """What `remap` comes to on machines with something to split, the allocator's own pages lying in some way.

    Attributes:
        machines: how many.
        table_lost, lists_torn: on how many of them a table is lost, lists are torn.
        deaths: what they die of afterwards, and how many.
    """

    machines: int = 0
    table_lost: int = 0
    lists_torn: int = 0
    deaths: dict[str, int] = field(default_factory=dict)


ALLOCATOR = (Structure.MEM_MAP, Structure.ZONE, Structure.PCP, Structure.FREE)


def answer(
    folder: Path,
    studies: Sequence[Study] = STUDIES,
    *,
    scheduler: str | None = None,
    processes: int | None = None,
    progress: Callable[[Study, Progress], None] | None = None,
) -> Answers:
    """Run the studies and judge the claims.

    Args:
        folder: where the records go; those of the same studies that are there are taken.
        studies: which; claims about others are left out.
        scheduler: as `run_sweep` has it.
        processes: likewise.
        progress: called after every machine.

    Raises:
        FormatError, HibernautError: as `run_sweep`.
    """
    studied = []
    for study in studies:

        def told(so_far: Progress, study: Study = study) -> None:
            if progress is not None:
                progress(study, so_far)

        path = folder / f"{study.name.replace(' ', '-')}.jsonl"
        tallies = run_sweep(study.sweep, path, scheduler=scheduler, processes=processes, progress=told)
        studied.append(Studied(study, tallies, path))
    names = {study.name for study in studies}
    judged = tuple(_judge(claim, studied) for claim in CLAIMS if set(claim.studies) <= names)
    return Answers(tuple(studied), judged, _placements(studied))


def _judge(claim: Claim, studied: Sequence[Studied]) -> Judged:
    machines = runs = against = 0
    first: str | None = None
    for one in studied:
        if one.study.name not in claim.studies:
            continue
        for trial in one.trials():
            if trial.name not in claim.ways:
                continue
            machines += 1
            runs += trial.way.runs
            if not claim.holds(trial):
                against += 1
                regions = ", ".join(map(str, trial.machine.regions)) or "no regions"
                first = first or f"{one.study.name}: {trial.name}: {regions}"
    return Judged(claim, machines, runs, against, first, _shown(claim, studied))


def _shown(claim: Claim, studied: Sequence[Studied]) -> Shown | None:
    """The shortest run that shows a claim, in the first study that has one."""
    way, which = claim.shows
    for one in studied:
        tally = one.tallies.get(way)
        if one.study.name not in claim.studies or tally is None:
            continue
        found = [best for outcome, (_, _, best) in tally.endings.items() if which(outcome)]
        if found:
            shortest = min(found, key=lambda each: each.rank)
            choices = shortest.choices if claim.plays is None else ()
            return Shown(one.study, shortest, _played(one.study, claim.plays or way, shortest.layout_choices, choices))
    return None


def _played(study: Study, way: str, layout_choices: tuple[int, ...], choices: tuple[int, ...]) -> Played:
    machine = FamilyMachine(study.sweep.family, layout_choices)
    operations = operations_of(machine.chosen()[0], way, study.sweep.allocations_after)
    return play(Written(machine, study.sweep.rules, operations, choices))


def _placements(studied: Sequence[Studied]) -> dict[tuple[Side, ...], Placement]:
    found: dict[tuple[Side, ...], Placement] = {}
    for one in studied:
        if one.study.name != "6.13-rc":
            continue
        for trial in one.trials():
            if trial.name != "remap" or not trial.splits:
                continue
            row = found.setdefault(tuple(trial.machine.where[each] for each in ALLOCATOR), Placement())
            row.machines += 1
            row.table_lost += trial.ends(_torn)
            row.lists_torn += trial.ends(_lists)
            for death in {ending.outcome.crash for ending in trial.way.endings if _dies_later(ending.outcome)}:
                row.deaths[death] = row.deaths.get(death, 0) + 1
    return found
