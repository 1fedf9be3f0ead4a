# SPDX-License-Identifier: GPL-2.0-or-later
"""Whenever a command ends, by a kill or a loss of power: the old file, none, or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from hibernaut.cli.lab.options import workshop
from hibernaut.report import answers as answers_module
from hibernaut.studies.answers import Answers
from hibernaut.volumes.output import write_file
from tests.crashes.calls import Call, Recorder
from tests.crashes.conftest import Recordings, Tallies
from tests.crashes.disk import all_states
from tests.crashes.scenarios import (
    EACH,
    HIDDEN,
    SCENARIOS,
    Recording,
    Scenario,
    record,
    resumed_records,
    tally,
)

NAMING = ("rename", "link")
NAMES = [scenario.name for scenario in SCENARIOS]


@pytest.mark.parametrize("name", NAMES)
def test_every_instant(recordings: Recordings, tallies: Tallies, name: str) -> None:
    """After each call, whatever reached the disk: nothing is half, and what has ended lasts."""
    told = tallies(name)
    assert told.faults(recordings(name).scenario.lasting) == []
    assert {"new"} <= told.verdicts.keys()
    assert len(told.verdicts) > 1


def without_site(calls: tuple[Call, ...], site: str) -> list[Call]:
    """Return the calls without the syncs of a place in the code."""
    return [call for call in calls if call.site != site or call.what not in ("sync", "sync all")]


def sync_sites(calls: tuple[Call, ...]) -> list[str]:
    """Return the places in the code that sync."""
    return list(dict.fromkeys(call.site for call in calls if call.what in ("sync", "sync all")))


@pytest.mark.parametrize("name", NAMES)
def test_each_sync_is_needed(recordings: Recordings, name: str) -> None:
    """Without any one of the syncs in the code, the model finds a state that must not be."""
    found = recordings(name)
    sites = sync_sites(found.calls)
    assert sites
    for site in sites:
        broken = without_site(found.calls, site)
        assert tally(found.scenario, found.tree, broken, first=True).faults(found.scenario.lasting), (
            f"nothing needs {site}"
        )


def is_of_data(calls: Sequence[Call], at: int) -> bool:
    """Return whether a sync is of something that was written, not of a folder."""
    return calls[at].what == "sync all" or any(one.what == "write" and one.file == calls[at].file for one in calls[:at])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "explore --results, resumed"])
def test_a_rename_before_the_sync_is_caught(recordings: Recordings, name: str) -> None:
    """A file gets its name before its data is synced: a half file, in every command that gives names."""
    found = recordings(name)
    if not any(call.what in NAMING for call in found.calls):
        assert name.startswith("rewrite --in-place")
        return
    syncs = [at for at, call in enumerate(found.calls) if call.what in ("sync", "sync all")]
    of_data = [at for at in syncs if is_of_data(found.calls, at)]
    caught = []
    for sync in of_data if name.startswith("answers") else of_data[:1]:  # a page may not link its first files yet
        calls = list(found.calls)
        end = next((at for at in range(sync + 1, len(calls)) if calls[at].what == "sync"), len(calls))
        named = max(at for at in range(sync, end) if calls[at].what in NAMING)
        calls.insert(named, calls.pop(sync))
        faults = tally(found.scenario, found.tree, calls, first=True).faults(False)
        caught.append(any(one.startswith("half") for one in faults))
    assert any(caught)
    if name == "answers --write":  # the runs by content, which no page links; both pages; the runs that the first links
        assert caught == [False, False, True, False, False, True]


def named_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take unnamed files from the file system, as FAT, NFS and old kernels do."""
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what an old kernel makes of it: EISDIR


@pytest.mark.parametrize("name", ["save", "convert --to raw", "explore --save", "seal-key"])
def test_every_instant_where_new_files_have_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Path, name: str
) -> None:
    """The hidden file may hold anything; its target is old or new, and the syncs are needed as well."""
    named_files(monkeypatch)
    scenario = next(one for one in SCENARIOS if one.name == name)
    found = record(scenario, tmp_path, small)
    assert all(call.what != "link" for call in found.calls)
    assert tally(scenario, found.tree, found.calls).faults(lasting=True) == []
    for site in sync_sites(found.calls):
        assert tally(scenario, found.tree, without_site(found.calls, site), first=True).faults(lasting=True), site


@pytest.mark.parametrize("name", ["explore --results", "explore --results, resumed"])
def test_lost_records(recordings: Recordings, name: str) -> None:
    """A loss of power costs at most the records since the last sync; a whole one of before is never refused."""
    found = recordings(name)
    written = [at for at, call in enumerate(found.calls) if call.what == "write" and b'"unit"' in call.data]
    records = [found.calls[at].data for at in written]
    *_, (_, last, _) = all_states(found.tree, found.calls)
    head = (last["results.jsonl"] or b"").splitlines(keepends=True)[0]
    known: dict[bytes, int] = {}
    for stop, state, whole in all_states(found.tree, found.calls):
        assert whole
        content = state.get("results.jsonl")
        done = sum(at < stop for at in written)
        if content is None:
            assert not done
            continue
        if content not in known:
            resumed = resumed_records(content, head, records)
            assert not isinstance(resumed, str), resumed
            known[content] = sum(one in resumed for one in records)
        assert known[content] >= done - EACH
    assert min(known.values()) == 0
    assert max(known.values()) == len(records)


def in_place_order(calls: tuple[Call, ...], order: str) -> list[Call]:
    """Return the calls of a rewrite in place in a wrong order. The header is written first and last, then synced."""
    start = next(at for at, call in enumerate(calls) if call.what == "write")
    allocated, giving_up, first_sync, *blocks, second_sync, header, last_sync = calls[:start], *calls[start:]
    assert {call.what for call in (first_sync, second_sync, last_sync)} == {"sync"}
    return {
        "header first": [*allocated, giving_up, first_sync, header, last_sync, *blocks, second_sync],
        "never given up": [*allocated, *blocks, second_sync, header, last_sync],
        "no sync before the header": [*allocated, giving_up, first_sync, *blocks, header, last_sync],
        "no sync after giving up": [*allocated, giving_up, *blocks, second_sync, header, last_sync],
    }[order]


@pytest.mark.parametrize("name", [name for name in NAMES if "in-place" in name])
@pytest.mark.parametrize(
    "order", ["header first", "never given up", "no sync before the header", "no sync after giving up"]
)
def test_wrong_orders_in_place_are_caught(recordings: Recordings, name: str, order: str) -> None:
    """The model finds a half image in each order that lacks one of the four steps."""
    found = recordings(name)
    faults = tally(found.scenario, found.tree, in_place_order(found.calls, order), first=True).faults(lasting=True)
    assert [one for one in faults if one.startswith("half")]


def test_runs_that_replace_those_of_the_old_page_are_caught(tmp_path: Path, small: Path) -> None:
    """`answers --write` without a page by content: some state has the old page and a new run under its link."""
    scenario = next(one for one in SCENARIOS if one.name == "answers --write")

    def write(page: Path, answers: Answers) -> None:
        for name, text in answers.runs.items():
            write_file(page.parent / page.stem / f"{name}.json", text.encode())
        write_file(page, answers_module.answers_page(answers, page.stem).encode())

    with mock.patch("hibernaut.cli.answers.write_answers", write):
        found = record(scenario, tmp_path, small)
    (fault,) = set(tally(scenario, found.tree, found.calls).faults(lasting=True))
    assert fault.startswith("half: the old page links page/remap-tears-the-image.json, which is not its own run")


def test_runs_by_content_of_an_earlier_call_are_removed(tmp_path: Path, small: Path) -> None:
    """Runs that nothing links any more, hidden or not; a file that has no claim's name stays."""
    scenario = next(one for one in SCENARIOS if one.name == "answers --write")
    scenario.prepare(tmp_path)
    name = "fixmap-is-safe.0123456789abcdef.json"
    for one in (name, f".{name}.01234567.partial", "mine.0123456789abcdef.json"):
        (tmp_path / "page" / one).touch()
    scenario.run(tmp_path, small)
    names = ["fixmap-is-safe.json", "mine.0123456789abcdef.json", "remap-tears-the-image.json"]
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == names


def test_a_result_that_is_removed_in_place_is_caught(recordings: Recordings) -> None:
    """A built kernel whose files go one by one under its own name: the stamp outlives the kernel in some state."""
    found = recordings("lab build")
    aside = next(call for call in found.calls if call.what == "rename")
    start = found.calls.index(aside)
    put = next(call for call in found.calls[start + 1 :] if call.what == "rename")
    removals = [call for call in found.calls if call.what in ("unlink", "rmdir")]
    removals[-1] = replace(removals[-1], place=aside.old)
    broken = [*found.calls[:start], *removals, put]
    assert tally(found.scenario, found.tree, broken, first=True).faults(lasting=False)


def test_a_folder_of_a_guest_is_synced_when_all_is_in_it(tmp_path: Path) -> None:
    """Disk and record belong together, and QEMU does not sync: one sync of all, the last call."""
    recorder = Recorder(tmp_path)
    with recorder.watching(), workshop(tmp_path / "guest") as folder:
        (folder / "swap.img").write_bytes(b"image")
        write_file(folder / "machine.json", b"{}")
    assert recorder.calls[-1].what == "sync all"
    assert [call.what for call in recorder.calls].count("sync all") == 1


def leftovers(scenario: Scenario, recording: Recording) -> Iterator[dict[str, bytes | None]]:
    """Yield states of a command that have hidden files."""
    for _, state, _ in all_states(recording.tree, recording.calls):
        hidden = [path for path in state if HIDDEN.search(path) or path.startswith(("kernels/.", ".stock"))]
        if hidden and scenario.judge(*[state] * 3):
            yield dict(state)


@pytest.mark.parametrize(
    "name", ["save", "convert --to elf", "explore --save", "answers --write", "lab cache", "lab build"]
)
def test_the_next_run_removes_what_is_left(recordings: Recordings, tmp_path: Path, small: Path, name: str) -> None:
    """Whatever a loss of power leaves, the same command then gives the same result, and no hidden file is left."""
    found = recordings(name)
    *_, (_, after, _) = all_states(found.tree, found.calls)
    seen: list[dict[str, bytes | None]] = []
    for state in leftovers(found.scenario, found):
        if state in seen or len(seen) > 20:
            continue
        seen.append(state)
        folder = tmp_path / str(len(seen))
        folder.mkdir()
        for path, content in sorted(state.items()):
            if content is None:
                (folder / path).mkdir()
            elif path.endswith("/build") and name == "lab build":
                (folder / path).symlink_to(content.decode())
            else:
                (folder / path).write_bytes(content)
            os.utime(folder / path, (0, 0), follow_symlinks=False)
        found.scenario.run(folder, small)
        again = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
        assert again.keys() == after.keys()
    assert seen
