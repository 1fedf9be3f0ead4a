# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that are not frozen and free a block: caught by the copy between hiding its pages and mapping them again."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import hibernation
from hibernaut.exploration.plan import layouts
from hibernaut.exploration.play import FamilyMachine, Written, play
from hibernaut.exploration.run import Outcome
from hibernaut.hibernation.owners import ONCE_RESUMED, WHILE_WRITING
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.guest_state import RunningGuest, region_problems
from hibernaut.lab.record import SPARE_NAME
from hibernaut.lab.threads import continue_threads, live_threads, start_threads, thread_problems
from hibernaut.lab.variants import variant_named
from hibernaut.lab.vm.port import Reply
from hibernaut.studies.trials import crashed_in_reset
from tests.conftest import REPOSITORY
from tests.lab.conftest import unavailable

if TYPE_CHECKING:
    from hibernaut.lab.laboratory import Lab

RECORDS = [json.loads(line) for line in (Path(__file__).parent / "caught_threads.jsonl").read_text().splitlines()]
"""Guests of `hibernaut lab hibernate` and `lab resume` with a thread: the reports of the module before the copy, in the
window on the resumed machine, and after the thread continued; the stacks and flags of the workers before the copy; the
crash, by the kernel's log."""
NAMES = [f"{one['kernel']} {one['variant']} {one['cure']}".strip() for one in RECORDS]
ON_DEMAND = pytest.mark.skipif(
    "HIBERNAUT_THREADS" not in os.environ, reason="two minutes of guests; HIBERNAUT_THREADS=1"
)

PF_NOFREEZE, PF_KTHREAD = 0x8000, 0x200000
"""Flags of a task (include/linux/sched.h), as field 9 of /proc/PID/stat shows them."""
VFREE_STACK = re.compile(r" D .*_vm_unmap_aliases\S* (?:vfree|__vunmap)\S* free_area\+")
WHOLE = {
    "block": "0x400", "error": "0", "present": "512", "right": "512", "other": "0", "faults": "0", "thread": "mapped"
}  # fmt: skip


def test_a_block_that_is_mapped_and_read_as_it_was_written_has_no_problem() -> None:
    """Each fact that is otherwise is one line: an error of a call, entries, pages that read otherwise."""
    assert thread_problems([WHOLE]) == []
    (line,) = thread_problems([{**WHOLE, "error": "-12"}])
    assert line == "thread: block 0x400: error -12 of the calls that hide and map"
    (line,) = thread_problems([{**WHOLE, "present": "0", "none": "500", "wrong": "12"}])
    assert line.endswith("0 present, 0 hidden, 500 none, 12 wrong")
    (line,) = thread_problems([{**WHOLE, "right": "510", "other": "1", "faults": "1"}])
    assert line.endswith("510 right, 1 with other data, 1 fault")


def test_pages_that_the_kernel_freed_at_once_need_no_reading_but_their_entries() -> None:
    """`vfree` leaves no time to read; a page that is not present is a problem all the same."""
    freed = {**WHOLE, "right": "0", "thread": "freed"}
    assert thread_problems([freed]) == []
    assert thread_problems([{**freed, "present": "511", "hidden": "1"}])
    assert thread_problems([{**freed, "thread": "mapped"}])


def test_the_thread_of_the_machine_that_writes_the_image_is_in_its_log() -> None:
    """One line of the module, among others."""
    log = (
        "[    7.3] hlab_region: 0 of 0 pages taken while devices are frozen\n"
        "[    7.9] hlab_region: thread block=0x400 error=0 right=512 other=0 faults=0 used=512\n"
    )
    assert live_threads(log) == (
        {"block": "0x400", "error": "0", "right": "512", "other": "0", "faults": "0", "used": "512"},
    )


class FakePort:
    """A guest's port: the module takes these words, after each of which the report has this line."""

    ended = lost = False

    def __init__(self, lines: dict[str, str], refusal: str = "") -> None:
        self.lines, self.refusal, self.line = lines, refusal, ""

    def ask(self, command: str, *_: float) -> Reply:
        """Return the report, or the result of a word."""
        if command.startswith("cat "):
            return Reply("s", 0, (f"region {self.line}",))
        return Reply("s", 1, (self.refusal,)) if self.refusal else Reply("s", 0, ())

    def run(self, command: str, *_: float) -> tuple[str, ...]:
        """Take a word; one without a line crashes the guest."""
        word = command.split()[1]
        if word not in self.lines:
            self.ended = True
            raise LabError("the guest ended")
        self.line = self.lines[word]
        return ()


def guest_with(lines: dict[str, str], refusal: str = "") -> RunningGuest:
    """Return a guest whose module behaves so, and whose kernel has logged a crash."""
    log = "[   12.5] BUG: unable to handle page fault for address: ffff8880005ff000\n"
    machine = SimpleNamespace(console=lambda: log, last_log_lines=lambda: [log])
    return RunningGuest(machine, FakePort(lines, refusal), "s", 0.0)  # type: ignore[arg-type]


def test_a_resumed_thread_is_moved_on_step_by_step() -> None:
    """Its last report is kept; a block of which no page was allocated again is a problem."""
    mapped = " ".join(f"{key}={value}" for key, value in WHOLE.items())
    used = f"{mapped} used=511"
    found = continue_threads(guest_with({"continue": mapped, "free": used}))
    assert (found.problems, found.crash, found.reports[0]["used"]) == ([], "", "511")
    found = continue_threads(guest_with({"continue": mapped, "free": f"{mapped} used=0"}))
    assert found.problems == ["thread: block 0x400: none of the freed pages was allocated again"]


def test_a_crash_of_a_resumed_thread_is_a_finding() -> None:
    """The report before it is kept, with its problems; the crash is that of the kernel's log."""
    garbage = " ".join(f"{key}={value}" for key, value in {**WHOLE, "present": "0", "wrong": "512"}.items())
    found = continue_threads(guest_with({"continue": garbage}))
    assert found.crash == "BUG: unable to handle page fault for address: ffff8880005ff000"
    assert found.problems[-1] == f"thread: at the step 'free': {found.crash}"
    assert found.problems[0].endswith("0 present, 0 hidden, 0 none, 512 wrong")
    assert found.reports[0]["wrong"] == "512"


def test_a_kernel_without_the_functions_leaves_the_laboratory_unavailable() -> None:
    """A thread that does not hide its block, for another reason, is an error."""
    with pytest.raises(LabUnavailable, match="lacks a function or lock"):
        start_threads(guest_with({}, "sh: write error: Operation not supported"))
    with pytest.raises(LabError, match="did not hide its block"):
        start_threads(guest_with({}, "sh: write error: Connection timed out"))
    start_threads(guest_with({}))


def predicted(record: dict[str, Any], *, acts_while_writing: bool) -> Outcome:
    """Return the outcome of the model's run: the same kernel line and way, the table on the same side, no injection.

    Args:
        record: a guest.
        acts_while_writing: whether the thread continues on the machine that writes the image.
    """
    side = Side.ABOVE if record["before"]["wish"].endswith(":above") else Side.BELOW
    family = Family(regions=(1,), kinds=(RegionKind.VMALLOC,), tables=(side,))
    by_one_call = record["variant"] != "thread-vfree"
    rules = record["kernel"] + " with resets_huge_vmalloc, set_direct_map_takes_pages" * by_one_call
    splits = by_one_call and not record["cure"]
    choices = (0, 0, int(acts_while_writing)) if splits else (int(acts_while_writing),)
    (unit,) = layouts(family)
    operations = hibernation(record["cure"] or "remap", owners=True)
    played = play(Written(FamilyMachine(family, unit), rules, operations, choices))
    told = "writes to it" if acts_while_writing else "leaves it alone"
    assert f"{told} while the image is written" in str(played.schedule[-1])
    return played.outcome


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_the_thread_was_not_frozen_and_in_its_window(record: dict[str, Any]) -> None:
    """By the kernel's own flags, entries and stacks; the kernel's `vfree` sleeps in the function between its passes."""
    before = record["before"]
    assert (before["thread"], before["hidden"], before["present"]) == ("window", "512", "0")
    assert before["level"] == ("4k" if record["variant"] == "thread-vfree" else "2m")
    assert record["in_window"]["thread"] == "window"
    flags = [int(line.split()[2]) for line in record["witness"]]
    assert flags
    assert all(one & PF_NOFREEZE and one & PF_KTHREAD for one in flags)
    if record["variant"] == "thread-vfree":
        assert any(VFREE_STACK.search(line) for line in record["witness"])


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_the_thread_of_the_live_machine_continues_as_in_the_model(record: dict[str, Any]) -> None:
    """Every page is mapped, read as it was written, freed, and cleared by a next user; so it is in the model."""
    live = record["live"]
    read = ("0", "0", "0") if record["variant"] == "thread-vfree" else ("512", "0", "0")
    assert (live["right"], live["other"], live["faults"]) == read
    assert live["error"] == "0"
    assert 500 < int(live["used"]) <= 512  # interrupts take some
    assert WHILE_WRITING not in predicted(record, acts_while_writing=True).crash


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_the_thread_of_the_resumed_machine_ends_as_in_the_model(record: dict[str, Any]) -> None:
    """The next user of a freed page faults exactly if the model's does; else all pages are whole."""
    outcome = predicted(record, acts_while_writing=False)
    faults = crashed_in_reset(outcome, ONCE_RESUMED)
    assert faults == bool(record["thread_crash"])
    assert faults != record["passed"]
    assert faults == ("tables-closed" in outcome.violated)
    if faults:
        assert record["crashed_in"].startswith(("clear_page", "clear_highpages"))
        assert record["threads"]["error"] == "0"  # the call that maps garbage reports success


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_the_verdict_of_the_laboratory_follows_from_the_reports(record: dict[str, Any]) -> None:
    """The problems that the reports have are those in the reason; without any, the guest passes."""
    problems = [*region_problems(record["before"], record["in_window"]), *thread_problems([record["threads"]])]
    assert record["passed"] == (not problems and not record["thread_crash"])
    assert all(problem in record["resumed"] for problem in problems)


def test_the_records_have_three_kernels_and_both_outcomes() -> None:
    """Every stock kernel crashes in one situation and continues in two: a check that cannot fail proves nothing."""
    for kernel in ("6.1", "6.12", "7.3"):
        ends = [bool(one["thread_crash"]) for one in RECORDS if one["kernel"] == kernel and not one["cure"]]
        assert sorted(ends) == [False, False, True]


@ON_DEMAND
@pytest.mark.parametrize("variant", ["thread-2m", "thread-2m-below", "thread-vfree"])
def test_a_guest_ends_as_it_did(lab_61: Lab, variant: str, tmp_path: Path) -> None:
    """6.1 again: the same verdict, and a crash in the same function, as recorded."""
    try:
        region_module(lab_61.cache, lab_61.kernel)
    except LabUnavailable as error:
        unavailable(str(error))
    (record,) = (one for one in RECORDS if (one["kernel"], one["variant"], one["cure"]) == ("6.1", variant, ""))
    done = lab_61.hibernate(variant_named(variant), tmp_path)
    assert done.outcome == "hibernated"
    (live,) = live_threads(done.log)
    assert (live["error"], live["right"]) == (record["live"]["error"], record["live"]["right"])
    resumed = lab_61.resume(done.record, [done.image, tmp_path / SPARE_NAME], tmp_path)
    assert resumed.passed == record["passed"], resumed.reason
    assert bool(resumed.facts["thread_crash"]) == bool(record["thread_crash"])
    assert record["crashed_in"] in resumed.log


PAGE = REPOSITORY / "docs" / "unmapped.md"
HEAD = (
    "| kernel | hidden by | table | in the image | live thread | resumed thread reads | next user | model |",
    "|---|---|---|---|---|---|---|---|",
)
CALLS = {"2m-thread": "one call for 512 pages", "vfree": "the kernel's `vfree`"}


def told(record: dict[str, Any]) -> list[str]:
    """Return the outcome of a guest in the words of the page: image, live thread, pages that are read, next user."""
    window, last = record["in_window"], record["threads"]
    same = window["pmd"] == record["before"]["pmd"] and window["hidden"] == "512"
    wrong = int(window["wrong"]) + int(window["none"])
    read = f"{last['right']} right, {last['other']} other, {last['faults']} fault"
    return [
        "as before the copy" if same else f"{wrong} of 512 entries wrong",
        "continues" if int(record["live"]["used"]) else "stops",
        "-" if record["variant"] == "thread-vfree" else read,
        f"faults in `{record['crashed_in']}`" if record["thread_crash"] else "continues",
    ]


def table() -> str:
    """Return the table of the page: one row a record."""
    rows = []
    for record in RECORDS:
        kind, side = record["before"]["wish"].split(":")
        release = record["release"].split("+")[0].removesuffix("-amd64") + f", {record['cure']}" * bool(record["cure"])
        faults = crashed_in_reset(predicted(record, acts_while_writing=False), ONCE_RESUMED)
        model = "next user faults" if faults else "continues"
        rows.append(f"| {' | '.join([release, CALLS[kind], side, *told(record), model])} |")
    return "\n".join([*HEAD, *rows])


def test_the_page_has_the_outcomes_of_the_records() -> None:
    """The table of docs/unmapped.md, row by row."""
    assert table() in PAGE.read_text()
