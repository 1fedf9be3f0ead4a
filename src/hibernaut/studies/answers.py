# SPDX-License-Identifier: GPL-2.0-or-later
"""What the mailing list could not know, asked of every run: the studies and claims behind `docs/answers.md`.

A study is a sweep. A claim is a statement about every machine of some studies, by some ways, as a function: it is
evaluated, never assumed, and comes with a run that shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hibernaut.exploration.families import Family, Situated
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.replay import FamilyMachine, Played, Written, play
from hibernaut.exploration.run import Verdict
from hibernaut.exploration.sweep import Counterexample, Progress, Sweep, Tally, Way, read_records, run_sweep
from hibernaut.hibernation.ways import MUTANTS
from hibernaut.linux.environment import Place, Region, Replay, Structure
from hibernaut.linux.rules import LINES

__all__ = ["CLAIMS", "STUDIES", "Answers", "Case", "Claim", "Judged", "Shown", "Studied", "Study", "answer"]

BOTH = (Place.ABOVE, Place.BELOW)
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
SPLITS = {Region.BLOCK: 1, Region.GIB: 3}
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
            Family(regions=(0, 1, 2), kinds=tuple(Region), root=BOTH),
            (*WAYS_IN_QUESTION, *MUTANTS),
        ),
    ),
    Study(
        "places",
        "where the kernel's own pages lie, and what becomes of the machine afterwards",
        Sweep(
            Family(
                regions=(0, 1),
                kinds=(Region.BLOCK, Region.GIB),
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
            Family(regions=(0, 1, 2, 3), kinds=(Region.BLOCK, Region.GIB), free=BOTH),
            tuple(f"reserved:{pages}" for pages in range(MOST_SPLITS + 1)),
        ),
    ),
    Study(
        "6.13-rc",
        "2 MiB blocks out of the direct map, as 6.13-rc's execmem took them, and where the allocator's own pages lie",
        Sweep(
            Family(
                regions=(0, 1, 2, 3),
                kinds=(Region.BLOCK,),
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
                kinds=(Region.BLOCK, Region.GIB),
                tables=(Place.BELOW,),
                mem_map=(Place.BELOW,),
                zone=(Place.BELOW,),
                pcp=(Place.ABOVE,),
                free=(Place.BELOW,),
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
                Family(regions=(0, 1, 2), kinds=tuple(Region)),
                ("remap", "fixmap", "fixmap-v3", "remap-whole"),
                rules=rules.line,
            ),
        )
        for rules in LINES[1:]
    ),
)


@dataclass(frozen=True)
class Case:
    """One machine of a study, by one way: what a claim speaks of.

    Attributes:
        machine: the machine.
        name: the way's name.
        way: what came of it.
    """

    machine: Situated
    name: str
    way: Way

    def ends(self, which: Callable[[Verdict], bool]) -> bool:
        """Whether any of its runs ends so."""
        return any(which(ending.verdict) for ending in self.way.endings)

    def has(self, *kinds: Region) -> bool:
        """Whether the machine has such a region."""
        return any(region.kind in kinds for region in self.machine.regions)

    @property
    def splits(self) -> int:
        """How many tables mapping its saved pages one by one takes."""
        return sum(SPLITS.get(region.kind, 0) for region in self.machine.regions)

    @property
    def split_above(self) -> bool:
        """Whether a large entry that has to be split lies in a table above its region."""
        return any(region.kind in SPLITS and region.tables == Place.ABOVE for region in self.machine.regions)

    @property
    def first_without_entry(self) -> Region | None:
        """The kind of the first region that has no entry, or no table."""
        kinds = (region.kind for region in self.machine.regions)
        return next((kind for kind in kinds if kind in (Region.NONE, Region.NO_TABLE)), None)

    def below(self, structure: Structure) -> bool:
        """Whether something of the kernel's lies below all regions."""
        return self.machine.where[structure] == Place.BELOW

    @property
    def reserve(self) -> int:
        """The size of its pool, by `reserved:N`."""
        return int(self.name.partition(":")[2])


def _clean(verdict: Verdict) -> bool:
    return not verdict.violated


def _loses(verdict: Verdict) -> bool:
    return verdict.loses


def _died(verdict: Verdict) -> bool:
    return verdict.outcome == "died"


def _torn(verdict: Verdict) -> bool:
    return "tables-closed" in verdict.violated


def _skipped(verdict: Verdict) -> bool:
    return verdict.outcome == "saved" and "every-listed-page" in verdict.violated


def _lists(verdict: Verdict) -> bool:
    return "lists-whole" in verdict.violated


def _null_in_pcplist(verdict: Verdict) -> bool:
    return "NULL" in verdict.death and "__rmqueue_pcplist" in verdict.death


def _dies_later(verdict: Verdict) -> bool:
    return _died(verdict) and _lists(verdict)


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
    holds: Callable[[Case], bool]
    shows: tuple[str, Callable[[Verdict], bool]]
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
        lambda case: not case.ends(lambda verdict: not _clean(verdict) or verdict.outcome != "saved"),
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
        lambda case: (
            case.ends(lambda verdict: not _clean(verdict)) == case.has(Region.NO_TABLE)
            and not case.ends(lambda verdict: not _clean(verdict) and "reading the NULL entry" not in verdict.death)
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
        lambda case: not case.has(Region.NO_TABLE) or not case.ends(lambda verdict: not _clean(verdict)),
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
        lambda case: (
            case.ends(_died) == (case.splits > 0)
            and not case.ends(lambda verdict: _died(verdict) and not verdict.warned)
        ),
        ("remap", lambda verdict: _died(verdict) and verdict.warned),
    ),
    Claim(
        "remap-dies-without-a-warning",
        "Remap, second failure: a page without an entry. CPA ignores it and reports success; no warning, and a page "
        "fault in the copy.",
        "on machines whose first region without an entry has a PTE table, `remap` and `remap-whole` have a run that "
        "dies of that page fault without a warning; on machines without such regions they have none",
        ("kinds", *_LINES),
        ("remap", "remap-whole"),
        lambda case: (
            case.ends(lambda verdict: "page fault" in verdict.death and not verdict.warned)
            == (case.first_without_entry == Region.NONE)
        ),
        ("remap", lambda verdict: "page fault" in verdict.death and not verdict.warned),
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
        lambda case: case.ends(lambda verdict: _torn(verdict) and not verdict.warned) == case.split_above,
        ("remap", lambda verdict: _torn(verdict) and not verdict.warned),
    ),
    Claim(
        "remap-without-a-table-dereferences-null",
        "And where there is no PTE table at all, Remap dies as the series does: of a NULL dereference.",
        "`remap` has a run that dies while reading the NULL entry exactly on machines whose first region without an "
        "entry has no table",
        ("kinds", *_LINES),
        ("remap",),
        lambda case: (
            case.ends(lambda verdict: "reading the NULL entry" in verdict.death)
            == (case.first_without_entry == Region.NO_TABLE)
        ),
        ("remap", lambda verdict: "reading the NULL entry" in verdict.death),
    ),
    Claim(
        "remap-leaks-where-it-does-not-tear",
        "Where the tables lie below and the allocator's pages above, Remap's image is consistent: a page leaks, no "
        "more.",
        "on machines with something to split, all of it in tables below, every run of `remap` that is saved breaks "
        "`allocator-sound` by a leak, and `same-rights` at most besides",
        ("regions",),
        ("remap",),
        lambda case: (
            case.splits == 0
            or case.split_above
            or not case.ends(lambda verdict: verdict.outcome == "saved" and (verdict.loses or _clean(verdict)))
        ),
        ("remap", lambda verdict: verdict.outcome == "saved" and not verdict.loses and not _clean(verdict)),
    ),
    Claim(
        "remap-whole-is-safe-for-entries",
        "RemapWhole is safe wherever there is an entry: whole regions, and pages among 4K entries that are present.",
        "no run of `remap-whole` violates any invariant on machines without regions that lack an entry or a table",
        ("regions", "kinds", "places", "6.13-rc", *_LINES),
        ("remap-whole",),
        lambda case: case.first_without_entry is not None or not case.ends(lambda verdict: not _clean(verdict)),
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
        lambda case: (
            case.ends(_loses) == (case.splits > case.reserve or (case.split_above and case.below(Structure.FREE)))
        ),
        ("reserved:1", lambda verdict: verdict.loses and not _torn(verdict) and not _died(verdict)),
    ),
    Claim(
        "reserved-leaves-traces",
        "And even where it loses nothing, the large page stays split.",
        "`reserved:9` is clean exactly on machines where no large entry lies in a table above its region: where one "
        "does the resumed machine has it split",
        ("regions",),
        ("reserved:9",),
        lambda case: case.ends(lambda verdict: not _clean(verdict)) == case.split_above,
        ("reserved:9", lambda verdict: not _clean(verdict)),
    ),
    Claim(
        "skipping-loses-pages",
        "Policies that skip a page (NULL from `hibernate_map_page`) trade the crash for lost pages in an image that "
        "loads.",
        "`remap-generic` and `remap-generic-zero` never die on machines whose regions have entries, and have a run in "
        "which a listed page is missing exactly on those with something to split",
        ("regions",),
        ("remap-generic", "remap-generic-zero"),
        lambda case: not case.ends(_died) and case.ends(_skipped) == (case.splits > 0),
        ("remap-generic", _skipped),
    ),
    Claim(
        "aborting-saves-the-machine-not-the-image",
        "Giving up instead loses nothing by a failing allocation, and changes nothing about the torn image.",
        "`remap-generic-abort` never dies, never skips a page, and is torn exactly where `remap` is",
        ("regions",),
        ("remap-generic-abort",),
        lambda case: not case.ends(_died) and not case.ends(_skipped) and case.ends(_torn) == case.split_above,
        ("remap-generic-abort", lambda verdict: verdict.outcome == "refused"),
    ),
    Claim(
        "a-stale-translation-hides-the-failure",
        "A CPU that still remembers the page can hide a failed split: after the warning the page is read all the same.",
        "`remap` has a run that is saved after a warning exactly on machines with something to split whose CPU "
        "remembers the regions from before",
        ("regions",),
        ("remap",),
        lambda case: (
            case.ends(lambda verdict: verdict.outcome == "saved" and verdict.warned)
            == (case.splits > 0 and case.machine.remembered)
        ),
        ("remap", lambda verdict: verdict.outcome == "saved" and verdict.warned and not verdict.loses),
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
        lambda case: case.splits == 0 or _as_the_sides_say(case),
        ("remap", lambda verdict: _lists(verdict) and not _died(verdict)),
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
        lambda case: (
            case.splits == 0
            or (
                case.ends(lambda verdict: _dies_later(verdict) and "__rmqueue_pcplist" in verdict.death)
                == (case.below(Structure.MEM_MAP) and not case.below(Structure.PCP))
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
        lambda case: (
            not case.ends(_torn)
            and not case.ends(lambda verdict: verdict.outcome == "saved" and case.splits > 0)
            and case.ends(_dies_later) == (case.splits > 0)
        ),
        ("remap", _dies_later),
    ),
)
"""In the order of the page."""


def _as_the_sides_say(case: Case) -> bool:
    """See the claim about torn lists."""
    below = {case.below(each) for each in (Structure.MEM_MAP, Structure.ZONE, Structure.PCP)}
    torn = case.ends(lambda verdict: _lists(verdict))
    if below == {False}:
        return not torn
    if below == {True}:
        return torn == case.split_above
    return torn and not case.ends(lambda verdict: verdict.outcome == "saved" and not _lists(verdict))


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

    def cases(self) -> Iterator[Case]:
        """Every machine by every way."""
        for _, record in read_records(self.path):
            machine = self.study.sweep.family.choose(Replay(record.unit))
            for name, way in record.ways.items():
                yield Case(machine, name, way)


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
    placements: Mapping[tuple[Place, ...], Placement]


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
        for case in one.cases():
            if case.name not in claim.ways:
                continue
            machines += 1
            runs += case.way.runs
            if not claim.holds(case):
                against += 1
                regions = ", ".join(map(str, case.machine.regions)) or "no regions"
                first = first or f"{one.study.name}: {case.name}: {regions}"
    return Judged(claim, machines, runs, against, first, _shown(claim, studied))


def _shown(claim: Claim, studied: Sequence[Studied]) -> Shown | None:
    """The shortest run that shows a claim, in the first study that has one."""
    way, which = claim.shows
    for one in studied:
        tally = one.tallies.get(way)
        if one.study.name not in claim.studies or tally is None:
            continue
        found = [best for verdict, (_, _, best) in tally.endings.items() if which(verdict)]
        if found:
            shortest = min(found, key=lambda each: each.rank)
            choices = shortest.choices if claim.plays is None else ()
            return Shown(one.study, shortest, _played(one.study, claim.plays or way, shortest.unit, choices))
    return None


def _played(study: Study, way: str, unit: tuple[int, ...], choices: tuple[int, ...]) -> Played:
    machine = FamilyMachine(study.sweep.family, unit)
    operations = operations_of(machine.situated()[0], way, study.sweep.allocations_after)
    return play(Written(machine, study.sweep.rules, operations, choices))


def _placements(studied: Sequence[Studied]) -> dict[tuple[Place, ...], Placement]:
    found: dict[tuple[Place, ...], Placement] = {}
    for one in studied:
        if one.study.name != "6.13-rc":
            continue
        for case in one.cases():
            if case.name != "remap" or not case.splits:
                continue
            row = found.setdefault(tuple(case.machine.where[each] for each in ALLOCATOR), Placement())
            row.machines += 1
            row.table_lost += case.ends(_torn)
            row.lists_torn += case.ends(_lists)
            for death in {ending.verdict.death for ending in case.way.endings if _dies_later(ending.verdict)}:
                row.deaths[death] = row.deaths.get(death, 0) + 1
    return found
