# SPDX-License-Identifier: GPL-2.0-or-later
"""Each reader under some executions with a fixed seed, its corpus, and the engine against defects that are planted."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hibernaut.kernel import lzo_rle
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.lime import open_lime
from hibernaut.swsusp import index_file
from hibernaut.volumes import partitions
from hibernaut.volumes.volume import Volume
from tests.fuzz.distil import distil, lines_of
from tests.fuzz.engine import CORPUS, MOST_FILE_BYTES, MOST_FILES, Arena, Finding, corpus_of, fuzz, keep, minimised
from tests.fuzz.mutate import fields_of
from tests.fuzz.targets import MIB, TARGETS, Target

REPOSITORY = Path(__file__).resolve().parents[2]
EXECUTIONS = 60
SLOW = {"raw": 15, "tables": 15, "salvage": 30, "uswsusp": 30}
"""Executions of targets of which one takes tens of milliseconds."""
TRACED_SECONDS = 20
"""CPU time of an execution whose memory tracemalloc counts, which makes it several times as slow."""
PLANTED = 4000
"""Executions within which a planted defect must be found."""


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_seed_is_read_to_its_end(target: Target) -> None:
    """A seed that is refused tests the refusal alone. Mending leaves it a file that the reader accepts."""
    seeds = target.seeds()
    with Arena(target) as arena:
        assert [name for name, data in seeds.items() if not arena.accepts(data)] == []
        assert [name for name, data in seeds.items() if not arena.accepts(target.repaired(data))] == []
        assert [finding for data in seeds.values() if (finding := arena.execute(data))] == []


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_number_has_a_place_inside_some_seed(target: Target) -> None:
    """Places that lie behind the end of all seeds would never be changed."""
    for data in target.seeds().values():
        places = target.places(data)
        assert not places or any(at + size <= len(data) for at, size in places)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_corpus_finds_nothing(target: Target) -> None:
    """Files that reach deep, and those that showed a defect once, within time and memory as tracemalloc counts it."""
    with Arena(target, seconds=TRACED_SECONDS, exact=True) as arena:
        assert [finding for data in corpus_of(target).values() if (finding := arena.execute(data))] == []


def test_the_corpus_is_small() -> None:
    """At most 20 files a target of at most 4 KiB, and no folder without a target."""
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
    for folder in CORPUS.iterdir():
        files = list(folder.iterdir())
        assert len(files) <= MOST_FILES, folder
        assert [path for path in files if path.stat().st_size > MOST_FILE_BYTES] == []


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_some_executions_find_nothing(target: Target) -> None:
    """Mutations with a fixed seed: the same files in each run."""
    with Arena(target) as arena:
        found = fuzz(arena, SLOW.get(target.name, EXECUTIONS), seed=20)
    assert found == []


def test_mutations_reach_lines_that_seeds_do_not(tmp_path: Path) -> None:
    """Mutations without an effect would find nothing, ever. The same seed makes the same files."""
    target = TARGETS["partitions"]
    with Arena(target) as arena:
        seeds = list(target.seeds().values())
        reached = set[tuple[str, int]]().union(*(lines_of(arena, data) for data in seeds))
        rng = random.Random(5)
        files = [target.mutated(rng.choice(seeds), rng, seeds) for _ in range(40)]
        rng = random.Random(5)
        assert files == [target.mutated(rng.choice(seeds), rng, seeds) for _ in range(40)]
        assert set[tuple[str, int]]().union(*(lines_of(arena, data) for data in files)) - reached
    assert list(tmp_path.iterdir()) == []


def found_in(target: Target, executions: int = PLANTED, **options: Any) -> Finding | None:
    """Return the first finding of some executions that mutate seeds, without the corpus."""
    with Arena(target, **options) as arena:
        found = fuzz(arena, executions, seed=7, inputs=list(target.seeds().values()), most_findings=1)
        return found[0] if found else None


def test_a_planted_index_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that no seed has leads out of a table."""
    original = partitions._mbr_partition

    def broken(kind: int, first: int, sectors: int) -> partitions.Partition:
        return original(kind, first, [sectors][sectors >> 31])

    monkeypatch.setattr(partitions, "_mbr_partition", broken)
    finding = found_in(TARGETS["partitions"])
    assert finding is not None
    assert finding.message.startswith("IndexError: list index out of range (partitions.py:")
    assert finding.name.startswith("found-indexerror-")
    with Arena(TARGETS["partitions"]) as arena:
        small = minimised(arena, finding)
        assert small.key == finding.key
        assert len(small.data.rstrip(b"\0")) <= len(finding.data)
        assert arena.execute(small.data) is not None


def test_a_planted_endless_loop_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU time ends it, although the loop takes every exception for damage."""

    def endless(*_: Any) -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue

    monkeypatch.setattr(lzo_rle._Decoder, "_refuse", endless)
    finding = found_in(TARGETS["lzo-rle"], seconds=0.2)
    assert finding is not None
    assert finding.message.startswith("Overrun: it takes more CPU time")


def claims(field: Callable[[Volume], int]) -> Callable[[Volume], Dump | Refusal]:
    """Return a reader of LiME that allocates as much as a field says before it reads."""
    original = open_lime

    def reader(volume: Volume) -> Dump | Refusal:
        np.empty(field(volume), dtype=np.uint8)
        return original(volume)

    return reader


@pytest.mark.parametrize("exact", [False, True])
def test_a_planted_allocation_is_found(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    """Memory of the size that a header claims, by the limit of address space and by tracemalloc."""

    def size(volume: Volume) -> int:
        head = volume.pread(0, 32)
        return min(int.from_bytes(head[16:24], "little"), 200 * MIB) if head.startswith(b"EMiL") else 0

    monkeypatch.setattr("hibernaut.sources.open_lime", claims(size))
    finding = found_in(TARGETS["lime"], exact=exact)
    assert finding is not None
    assert finding.message.startswith("MemoryError: ")


def test_a_planted_defect_behind_a_checksum_is_found_by_mending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mending the SHA-256 of an index file hides everything behind it."""
    original = index_file._units

    def broken(*words: Any) -> Any:
        assert words[0].max(initial=0) < 1 << 16
        return original(*words)

    monkeypatch.setattr(index_file, "_units", broken)
    target = TARGETS["index"]
    finding = found_in(target)
    assert finding is not None
    assert finding.message.startswith("AssertionError")
    assert found_in(replace(target, mend=lambda _data: None), 600) is None


def test_places_of_a_structure_are_those_of_its_numbers() -> None:
    """Nested structures and arrays; text has no number."""
    inner = np.dtype([("a", "<u2"), ("text", "S3"), ("b", "<u4", 2)])
    outer = np.dtype([("first", "u1"), ("parts", inner, 2)])
    assert fields_of(outer, 100) == [(100, 1), (101, 2), (106, 4), (110, 4), (114, 2), (119, 4), (123, 4)]


def test_large_files_of_a_corpus_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is kept is read again."""
    monkeypatch.setattr("tests.fuzz.engine.CORPUS", tmp_path)
    target = TARGETS["elf"]
    for name, data in (("small", b"abc"), ("large", bytes(10_000))):
        keep(tmp_path / "elf", name, data)
    assert corpus_of(target) == {"small": b"abc", "large.zst": bytes(10_000)}


def test_files_of_new_lines_are_distilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file ends nothing; of two files that reach the same lines the smaller one is kept."""
    monkeypatch.setattr("tests.fuzz.engine.CORPUS", tmp_path / "corpus")
    monkeypatch.setattr("tests.fuzz.distil.CORPUS", tmp_path / "corpus")
    found = tmp_path / "found"
    found.mkdir()
    for name, data in (("empty", b""), ("cut", b"\x19ab"), ("longer", b"\x19abc")):
        (found / name).write_bytes(data)
    target = TARGETS["lzo-rle"]
    assert distil(target, found) == 1
    assert list(corpus_of(target).values()) == [b"\x19ab"]
    assert distil(target, found) == 1


def test_the_command_reports_executions_and_findings(tmp_path: Path) -> None:
    """A line a target, and the status of success; an unknown target is a usage error."""
    words = [sys.executable, "-m", "tests.fuzz", "--folder", str(tmp_path), "--seconds", "60", "--executions", "30"]
    done = subprocess.run([*words, "machine"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("machine: ")
    assert done.stdout.endswith(", 0 findings\n")
    wrong = subprocess.run([*words, "nothing"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert wrong.returncode == 2
    assert "no target nothing; expected: image-2.6.24, " in wrong.stderr
