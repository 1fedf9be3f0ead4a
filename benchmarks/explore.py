# SPDX-License-Identifier: GPL-2.0-or-later
"""Exploration: states a second against plain searches of the same machines and a model checker; sizes of machines.

`python benchmarks/explore.py` prints three tables. What is explored: every machine with one or two regions of 2 MiB or
1 GiB out of its direct map, their tables above or below them, by three ways.

1. `explore_run` against a textbook breadth-first search (a queue of forked runs, a set of digests), which must find as
   many states, and against no search at all: every run from its start, with other answers each time, which must find
   as many runs, ending alike.
2. `explore_run` against the model checker SPIN on a model of the same copy loop, `remap.pml`: every machine and way
   must have as many runs to each outcome in both. SPIN (Debian package spin) and gcc are needed; if they are not there,
   that part is reported as not measured.
3. What a step costs on machines with more regions, more free pages, more RAM.

`python benchmarks/explore.py --against PATH` compares with another checkout instead: both explore the same machines, of
the table above and of each study, in turns, each time in a process of its own, and must write the same records.

`python benchmarks/explore.py --against PATH --studies` runs all studies that both have, on all cores, and judges their
claims: one after the other, in elapsed time. Both must write the same records.

`python benchmarks/explore.py --scope` covers a scope with 26 times the runs of the largest study and 9.8 times its
states: every machine with four regions of 4 KiB, 2 MiB or 1 GiB and one or two CPUs, on all cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hibernaut.exploration.families import ChosenMachine, Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.plan import Sweep, layouts
from hibernaut.exploration.run import Outcome, Run
from hibernaut.exploration.search import explore_run
from hibernaut.exploration.sweep import run_sweep
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Kind, Question, Replay
from hibernaut.linux.machine import Machine
from hibernaut.studies.answers import answer
from hibernaut.studies.questions import STUDIES

try:
    from hibernaut.memory.memo import Memo
except ImportError:  # a checkout to compare with may be from before there were any
    Memo = object  # type: ignore[assignment,misc]

WAYS = ("remap", "remap-generic", "fixmap")
FAMILY = Family(regions=(1, 2), kinds=(RegionKind.BLOCK, RegionKind.GIB))
ROUNDS = 3
SIZE_ROUNDS = 20
MODEL = Path(__file__).with_name("remap.pml")
RATE_REGIONS = 4
"""SPIN is through with two regions before its clock moves: its rate is measured on machines of up to four."""
GIB_PAGES = 1 << 18
AGAINST = {"regions": 12, "kinds": 30, "places": 12, "reserve": 15, "6.13-rc": 30, "owners": 12, "line 6.12": 20}
"""Machines of each study that two checkouts explore, from its middle on."""
AGAINST_ROUNDS = 2
SCOPE_WAYS = ("remap", "remap-generic", "fixmap", "fixmap-v1", "remap-whole")


class Told(Environment):
    """Environment with given answers, then 0, that records the number of options of each question, except frames."""

    def __init__(self, answers: Sequence[int]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.options: list[int] = []

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        self.options.append(1 if question.kind == Kind.FREE_FRAME else len(question.options))
        if len(self.answers) < len(self.options):
            self.answers.append(0)
        return self.answers[len(self.options) - 1]


def others(told: Told, prefix: int) -> list[list[int]]:
    """The other answers to the questions that came after so many."""
    return [
        [*told.answers[:at], answer] for at in range(prefix, len(told.options)) for answer in range(1, told.options[at])
    ]


def breadth_first(start: Run) -> int:
    """The states of all runs, ends included: each state's next step for every combination of answers, from a fork."""
    seen = {start.digest()}
    ends: set[tuple[bytes, Outcome]] = set()
    queue = deque([start])
    while queue:
        state = queue.popleft()
        digest = state.digest()
        combinations: list[list[int]] = [[]]
        while combinations:
            prefix = combinations.pop()
            told = Told(prefix)
            run = state.fork(told)
            run.advance()
            combinations += others(told, len(prefix))
            if run.finished:
                ends.add((digest, run.outcome))
            elif (key := run.digest()) not in seen:
                seen.add(key)
                queue.append(run)
    return len(seen) + len(ends)


def one_by_one(start: Run) -> Counter[Outcome]:
    """Every run from its start to its end, for every combination of answers: how many end in each way."""
    ends: Counter[Outcome] = Counter()
    combinations: list[list[int]] = [[]]
    while combinations:
        prefix = combinations.pop()
        told = Told(prefix)
        run = start.fork(told)
        run.finish()
        combinations += others(told, len(prefix))
        ends[run.outcome] += 1
    return ends


def machines(family: Family) -> list[tuple[ChosenMachine, Machine]]:
    """Every machine of a family."""
    found = []
    for layout_choices in layouts(family):
        chosen = family.choose(Replay(layout_choices))
        found.append((chosen, build_machine(chosen.layout)))
    return found


def forgotten(starts: Sequence[Run]) -> Sequence[Run]:
    """Return the starts, whose machines have forgotten the results of earlier rounds."""
    for start in starts:
        start.machine.memo = Memo()
    return starts


def best(rounds: int, *jobs: Callable[[], object]) -> list[float]:
    """Seconds of each job: the best of some rounds, the jobs taking turns."""
    seconds = [float("inf")] * len(jobs)
    for _ in range(rounds):
        for number, job in enumerate(jobs):
            started = time.perf_counter()
            job()
            seconds[number] = min(seconds[number], time.perf_counter() - started)
    return seconds


def plain_searches() -> tuple[int, float]:
    """Part 1. Gives the number of states of all, and seconds that `explore_run` took for them."""
    peers = f"{'breadth first':>15}{'ratio':>7}{'run by run':>12}{'ratio':>7}"
    print(f"{'':<16}{'runs':>7}{'states':>8}{'states/s':>10}{peers}")
    built = machines(FAMILY)
    all_states, all_seconds = 0, 0.0
    for way in WAYS:
        starts = [Run(machine, operations_of(chosen, way)) for chosen, machine in built]
        runs = states = 0
        for start in starts:
            found = explore_run(start)
            assert breadth_first(start) == found.states
            assert one_by_one(start) == {outcome: known.runs for outcome, known in found.futures.items()}
            runs, states = runs + found.runs, states + found.states
        ours, plain, single = best(
            ROUNDS,
            lambda starts=starts: [explore_run(start) for start in forgotten(starts)],  # type: ignore[misc]
            lambda starts=starts: [breadth_first(start) for start in forgotten(starts)],  # type: ignore[misc]
            lambda starts=starts: [one_by_one(start) for start in forgotten(starts)],  # type: ignore[misc]
        )
        print(
            f"{way:<16}{runs:>7}{states:>8}{states / ours:>10.0f}{plain:>13.2f} s{plain / ours:>7.2f}"
            f"{single:>10.2f} s{single / ours:>7.2f}"
        )
        all_states, all_seconds = all_states + states, all_seconds + ours
    return all_states, all_seconds


Ends = Counter[tuple[str, tuple[str, ...], str]]
"""Runs by way, regions, and three digits: died, tables not closed, a page missing."""


def our_ends() -> Ends:
    """Return the endings that `explore_run` finds."""
    ends: Ends = Counter()
    for chosen, machine in machines(FAMILY):
        for way in WAYS:
            for outcome, known in explore_run(Run(machine, operations_of(chosen, way))).futures.items():
                wrong = [outcome.status == "died"]
                wrong += [name in outcome.violated for name in ("tables-closed", "every-listed-page")]
                ends[way, tuple(map(str, chosen.regions)), "".join(str(int(one)) for one in wrong)] += known.runs
    return ends


def model_checker(folder: Path, *defines: str) -> tuple[Ends, int, float]:
    """The ends that SPIN finds in the model, the states that it stored, and how long that took."""
    subprocess.run(["spin", "-a", *defines, str(MODEL)], cwd=folder, check=True, capture_output=True)
    subprocess.run(["gcc", "-O2", "-DSAFETY", "-w", "-o", "pan", "pan.c"], cwd=folder, check=True)
    started = time.perf_counter()
    told = subprocess.run(["./pan", "-m100000"], cwd=folder, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - started
    assert "errors: 0" in told
    assert "Search not completed" not in told
    stored = re.search(r"^ *(\d+) states, stored", told, re.MULTILINE)
    assert stored is not None
    ends: Ends = Counter()
    for line in told.splitlines():
        if line.startswith("END "):
            _, way, *regions, wrong = line.split()
            ends[WAYS[int(way)], tuple(regions), wrong] += 1
    return ends, int(stored[1]), seconds


def against_spin(states: int, seconds: float) -> None:
    """Part 2, with what part 1 has measured."""
    for program, package in (("spin", "spin"), ("gcc", "gcc")):
        if shutil.which(program) is None:
            print(f"SPIN: not measured: {program} is not installed (Debian package {package})")
            return
    ours = our_ends()
    with tempfile.TemporaryDirectory() as folder:
        by_run, _, _ = model_checker(Path(folder), "-DREGIONS=2", "-DHISTORY")
        assert by_run == ours, (by_run - ours, ours - by_run)
        merged, stored, _ = model_checker(Path(folder), "-DREGIONS=2")
        assert merged.keys() == ours.keys()
        _, many, long = model_checker(Path(folder), f"-DREGIONS={RATE_REGIONS}")
    machines_and_ways = len({key[:2] for key in ours})
    print(f"machines and ways: {machines_and_ways}; outcomes that each can end in: {len(ours)}; runs: {ours.total()}")
    print("SPIN: the same outcomes of each, each with the same number of runs")
    print(f"states of these: {states} real machines, {stored} of SPIN's model")
    print(
        f"states a second: {states / seconds:.0f} of ours, {many / long:.0f} of SPIN's (of {many}, with up to "
        f"{RATE_REGIONS} regions): SPIN is {many / long / (states / seconds):.0f} times as fast"
    )


def sizes() -> None:
    """Part 3: all sizes take turns, so that a busy machine hurts them alike."""
    cases = [(regions, free, 0) for regions in (1, 2, 3) for free in (16, 256, 4096)]
    cases += [(1, 256, more) for more in (4, 16, 64, 256)]
    lines, steps, jobs = [], [], []
    for regions, free, more in cases:
        chosen = Family(regions=(regions,), kinds=(RegionKind.BLOCK,), free_pages=free).choose(Environment())
        *rest, (first, pages) = chosen.layout.ram
        layout = replace(chosen.layout, ram=(*rest, (first, pages + more * GIB_PAGES)))
        machine = build_machine(layout)
        starts = [Run(machine, operations_of(chosen, way)) for way in WAYS]
        ram, top = sum(count for _, count in layout.ram), first + pages + more * GIB_PAGES
        lines.append(f"{regions:>7}{free:>12}{ram / GIB_PAGES:>6.0f} GiB{top / GIB_PAGES:>6.0f} GiB")
        steps.append(sum(explore_run(start).steps for start in starts))
        jobs.append(lambda starts=starts: [explore_run(start) for start in forgotten(starts)])
    print(f"{'regions':>7}{'free pages':>12}{'RAM':>10}{'up to':>10}{'steps':>8}{'a step':>10}")
    for line, count, seconds in zip(lines, steps, best(SIZE_ROUNDS, *jobs), strict=True):
        print(f"{line}{count:>8}{seconds / count * 1e6:>7.0f} us")


def measure() -> None:
    """Explore once, and print CPU seconds, states and a digest of the records of each part, as JSON."""
    found = {}
    built = machines(FAMILY)
    for way in WAYS:
        started = time.process_time()
        explored = [explore_run(Run(machine, operations_of(chosen, way))) for chosen, machine in built]
        seconds = time.process_time() - started
        told = repr([(one.futures.keys(), one.runs, one.states, one.steps) for one in explored])
        found[f"20 machines, {way}"] = _part(seconds, sum(one.states for one in explored), told)
    for study in STUDIES:
        count = AGAINST.get(study.name)
        if count is not None:
            every = list(layouts(study.sweep.family))
            middle = len(every) // 2
            started = time.process_time()
            records = [explore_layout(study.sweep, choices) for choices in every[middle : middle + count]]
            seconds = time.process_time() - started
            states = sum(way.states for record in records for way in record.ways.values())
            found[f"study {study.name}"] = _part(seconds, states, "\n".join(record.line() for record in records))
    print(json.dumps(found))


def _part(seconds: float, states: int, told: str) -> dict[str, object]:
    return {"seconds": seconds, "states": states, "digest": hashlib.sha256(told.encode()).hexdigest()}


def against(other: Path) -> None:
    """Compare with another checkout: both explore in turns, each time in a process of its own, with empty memos."""
    here = Path(__file__).resolve().parent.parent
    best_of: dict[Path, dict[str, dict[str, float]]] = {other: {}, here: {}}
    told: dict[str, object] = {}
    for _ in range(AGAINST_ROUNDS):
        for checkout, known in best_of.items():
            for name, part in json.loads(_by(checkout, "--measure")).items():
                assert told.setdefault(name, part["digest"]) == part["digest"], f"{name}: other records"
                if name not in known or part["seconds"] < known[name]["seconds"]:
                    known[name] = part
    print(f"{'CPU time, best of ' + str(AGAINST_ROUNDS):<32}{'states':>8}{'other':>10}{'this':>10}{'ratio':>8}")
    sums = [0.0, 0.0]
    for name, part in best_of[here].items():
        seconds = [best_of[checkout][name]["seconds"] for checkout in (other, here)]
        sums = [one + more for one, more in zip(sums, seconds, strict=True)]
        rates = "".join(f"{part['states'] / one:>8.0f}/s" for one in seconds)
        print(f"{name:<32}{part['states']:>8}{rates}{seconds[0] / seconds[1]:>8.1f}")
    print(f"{'all':<32}{'':>8}{sums[0]:>8.1f} s{sums[1]:>8.1f} s{sums[0] / sums[1]:>8.1f}")


def whole_studies(other: Path) -> None:
    """Compare with another checkout: both run all studies that both have, as `hibernaut answers` does."""
    here = Path(__file__).resolve().parent.parent
    theirs = json.loads(_by(other, "--names"))
    names = [study.name for study in STUDIES if study.name in theirs]
    parts = {checkout: json.loads(_by(checkout, "--answer", *names)) for checkout in (other, here)}
    for name in names:
        assert parts[other]["records"][name] == parts[here]["records"][name], f"{name}: other records"
    seconds = [parts[checkout]["seconds"] for checkout in (other, here)]
    print(f"{len(names)} studies: {', '.join(names)}")
    print(f"other {seconds[0]:.0f} s, this {seconds[1]:.0f} s, ratio {seconds[0] / seconds[1]:.1f}")


def _by(checkout: Path, *words: str) -> str:
    """Return what this script prints with these arguments and the sources of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def answer_studies(names: Sequence[str]) -> None:
    """Run studies and judge their claims; print seconds, and a digest of the records of each, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        answer(Path(folder), [study for study in STUDIES if study.name in names])
        seconds = time.perf_counter() - started
        records = {}
        for name in names:
            lines = (Path(folder) / f"{name.replace(' ', '-')}.jsonl").read_text().splitlines()
            records[name] = hashlib.sha256("\n".join(sorted(lines[1:])).encode()).hexdigest()
    print(json.dumps({"seconds": seconds, "records": records}))


def scope() -> None:
    """Cover the large scope, and print what it has and how long that takes."""
    sweep = Sweep(Family(regions=(4,), cpus=(1, 2)), SCOPE_WAYS)  # more regions than older checkouts have
    started = time.perf_counter()
    tallies = run_sweep(sweep)
    seconds = time.perf_counter() - started
    machines_done = len(list(layouts(sweep.family)))
    states = sum(one.states for one in tallies.values())
    print(f"{sweep.scope}; {', '.join(sweep.ways)}")
    print(f"{machines_done} machines, {sum(one.runs for one in tallies.values())} runs, {states} states")
    print(f"{seconds / 60:.1f} min on {len(os.sched_getaffinity(0))} cores: {states / seconds:.0f} states a second")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Measure explorations.")
    parser.add_argument("--against", type=Path, metavar="PATH", help="compare with this checkout of hibernaut")
    parser.add_argument("--studies", action="store_true", help="with --against: all studies that both have, whole")
    parser.add_argument("--scope", action="store_true", help="cover machines with four regions and one or two CPUs")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--names", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--answer", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.studies and options.against is None:
        parser.error("--studies needs --against")
    if options.names:
        print(json.dumps([study.name for study in STUDIES]))
        return
    if options.answer:
        answer_studies(options.answer)
        return
    if options.measure:
        measure()
        return
    if options.scope:
        scope()
        return
    if options.against is not None:
        compare = whole_studies if options.studies else against
        compare(options.against.resolve())
        return
    states, seconds = plain_searches()
    print()
    against_spin(states, seconds)
    print()
    sizes()


if __name__ == "__main__":
    main()
