# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: every machine once, on all cores or one, streamed to a file that can be gone on with."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.plan import Sweep, layouts
from hibernaut.exploration.records import MachineRecord
from hibernaut.exploration.results import read_records
from hibernaut.exploration.run import Outcome
from hibernaut.exploration.scopes import family_from_json, family_json
from hibernaut.exploration.search import Bounds
from hibernaut.exploration.sweep import Progress, run_sweep
from hibernaut.exploration.tally import Tally

SMALL = Sweep(Family(regions=(0, 1), kinds=(RegionKind.BLOCK, RegionKind.NONE)), ("remap", "fixmap"))


def endings(tallies: dict[str, Tally]) -> dict[str, dict[Outcome, tuple[int, int]]]:
    return {
        way: {outcome: (runs, machines) for outcome, (runs, machines, _) in tally.endings.items()}
        for way, tally in tallies.items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tally]]:
    path = tmp_path_factory.mktemp("sweep") / "whole.jsonl"
    return path, run_sweep(SMALL, path, processes=1)


def test_remap_and_fixmap_on_the_smallest_family(whole: tuple[Path, dict[str, Tally]]) -> None:
    """A 2 MiB region: Remap dies if the allocation fails, tears the image if the table lies above, leaks if below."""
    remap, fixmap = whole[1]["remap"], whole[1]["fixmap"]
    assert (remap.machines, remap.runs, fixmap.machines, fixmap.runs) == (5, 7, 5, 5)
    found = {
        (outcome.status, outcome.warned, outcome.violated[:1]): best.regions
        for outcome, (_, _, best) in remap.endings.items()
    }
    assert found == {
        ("saved", False, ()): (),
        ("saved", False, ("tables-closed",)): ("2m:above",),
        ("saved", False, ("allocator-sound",)): ("2m:below",),
        ("died", True, ("no-fault",)): ("2m:above",),
        ("died", False, ("no-fault",)): ("none:above",),
    }
    assert set(fixmap.endings) == {Outcome("saved")}


def test_cores_change_nothing(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """On two processes the same comes out as on one, the shortest runs included."""
    both = run_sweep(SMALL, tmp_path / "out.jsonl", processes=2)
    assert both == whole[1]
    assert sorted(open_lines(tmp_path / "out.jsonl")) == sorted(open_lines(whole[0]))


def open_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_an_interrupted_sweep_is_gone_on_with(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """What is in the file is not run again, a torn last line is: nothing is lost, nothing counted twice."""
    lines = open_lines(whole[0])
    for kept in range(1, len(lines)):
        path = tmp_path / f"{kept}.jsonl"
        path.write_text("\n".join(lines[:kept]) + "\n" + lines[kept][: len(lines[kept]) // 2])
        told: list[Progress] = []
        assert run_sweep(SMALL, path, processes=1, progress=told.append) == whole[1]
        assert [one.machines for one in told] == list(range(kept - 1, 6))
        assert sorted(open_lines(path)) == sorted(lines)


def test_a_record_that_is_there_twice_counts_once(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """Two lines of one machine, and one of a machine that the family does not have: counted once, and not at all."""
    lines = open_lines(whole[0])
    path = tmp_path / "twice.jsonl"
    stranger = json.dumps({**json.loads(lines[1]), "unit": [1, 1, 1, 1, 1, 1]})
    path.write_text("\n".join([*lines, lines[2], stranger]) + "\n")
    assert run_sweep(SMALL, path, processes=1) == whole[1]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not a sweep\n", "is no file of a sweep's results"),
        ('{"format": "hibernaut sweep", "version": 1, "sweep": {}}\n', "holds the results of another sweep"),
    ],
)
def test_another_file_is_left_alone(tmp_path: Path, content: str, what: str) -> None:
    """A file that is something else is refused and not touched."""
    path = tmp_path / "other"
    path.write_text(content)
    with pytest.raises(FormatError, match=what):
        run_sweep(SMALL, path, processes=1)
    assert path.read_text() == content


def test_a_damaged_line_is_named(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """A whole line that is no record: refused, with its number."""
    path = tmp_path / "damaged.jsonl"
    path.write_text("\n".join([*open_lines(whole[0]), "{}"]) + "\n")
    with pytest.raises(FormatError, match="line 7 is no record"):
        run_sweep(SMALL, path, processes=1)


def test_records_survive_their_file(whole: tuple[Path, dict[str, Tally]]) -> None:
    """A record is the same after a trip through its line."""
    for number, record in read_records(whole[0]):
        assert number >= 2
        assert MachineRecord.from_line(record.line()) == record
        assert explore_layout(SMALL, record.layout_choices) == record


def test_bounds_are_part_of_what_comes_out() -> None:
    """Without failing allocations Remap does not die; a search that is cut says so."""
    family = Family(regions=(1,), kinds=(RegionKind.BLOCK,), tables=(Side.BELOW,))
    calm = run_sweep(Sweep(family, ("remap",), bounds=Bounds(failures=0)), processes=1)["remap"]
    assert {outcome.status for outcome in calm.endings} == {"saved"}
    assert (calm.cut, calm.where) == (0, None)
    cut = run_sweep(Sweep(family, ("remap",), bounds=Bounds(states=3)), processes=1)["remap"]
    assert cut.cut == 1
    assert cut.where is not None
    assert cut.where.startswith("after 3 states")


def test_families_survive_their_file() -> None:
    """A family is the same after a trip through JSON; what is none is refused."""
    family = Family(regions=(0, 3), kinds=tuple(RegionKind), remembered=(False, True), cpus=(1, 4), free_pages=7)
    assert family_from_json(json.loads(json.dumps(family_json(family)))) == family
    good = family_json(family)
    damaged: list[Any] = [
        {**good, "regions": [9]},
        {**good, "kinds": ["5k"]},
        {**good, "tables": ["beside"]},
        {**good, "cpus": [True]},
        {**good, "remembered": [0]},
        {**good, "free_pages": 1 << 40},
        {**good, "colour": ["red"]},
        {**good, "regions": 3},
        [],
        None,
    ]
    for bad in damaged:
        with pytest.raises(FormatError, match="not a family"):
            family_from_json(bad)


def test_layouts_come_simplest_first() -> None:
    """The machine without regions is the first, and no machine comes twice."""
    listed = list(layouts(Family(regions=(0, 1, 2), kinds=(RegionKind.PAGE, RegionKind.NO_TABLE))))
    assert listed[0] == (0,)
    assert len(listed) == len(set(listed)) == 1 + 3 + 9


def test_a_sweep_needs_ways_that_exist() -> None:
    """No ways, one twice, an unknown one, an unknown line: refused."""
    for ways, rules in (((), "6.1"), (("remap", "remap"), "6.1"), (("fly",), "6.1"), (("remap",), "2.4")):
        with pytest.raises(HibernautError):
            Sweep(Family(), ways, rules)


LONG = """
from hibernaut.exploration.families import Family
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.sweep import run_sweep

def told(progress):
    print(progress.machines, flush=True)

if __name__ == "__main__":
    run_sweep(Sweep(Family(regions=(0, 1, 2, 3)), ("remap-generic",)), processes=2, progress=told)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look for processes in")
def test_a_killed_sweep_leaves_no_process_behind(tmp_path: Path) -> None:
    """SIGKILL of the parent in mid-sweep: its workers end, too, instead of waiting for work for ever."""
    script = tmp_path / "long.py"
    script.write_text(LONG)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        while parent.stdout.readline().strip() != b"2":
            assert parent.poll() is None
        assert len(of_session(parent.pid)) >= 3
        parent.kill()
    deadline = time.monotonic() + 60
    while of_session(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert of_session(parent.pid) == []


def of_session(session: int) -> list[int]:
    """The processes of a session that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return found
