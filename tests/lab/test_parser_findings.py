# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings of changed images: reduced to the fewest changes, told from a log, and kept as cases that predict again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hibernaut.errors import LabError
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.parser import waiting as waiting_module
from hibernaut.lab.parser.campaign import PredictedResume, TriedImage, _Target, prediction
from hibernaut.lab.parser.mutations import WORDS, Mutation, Mutator
from hibernaut.lab.parser.sanitizers import SANITIZERS, SANITIZERS_CONFIG, refuse_silent, sanitizers_of
from hibernaut.lab.parser.waiting import (
    LEAVES,
    READ,
    SANITIZER,
    ResumeOutcome,
    WaitingMachine,
    crash_in,
    frames_in_zones,
    reports_in,
)
from hibernaut.memory.ranges import FrameRanges
from hibernaut.report.documents import TriedImageDocument
from hibernaut.report.parser import kept_images
from hibernaut.swsusp import open_image
from hibernaut.swsusp.checks import ResumingMachine
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.volumes.files import open_plain
from tests.conftest import REPOSITORY, Golden

KASAN = "BUG: KASAN: slab-use-after-free in lkdtm_WRITE_AFTER_FREE+0x1d/0x40"
UBSAN = "UBSAN: array-index-out-of-bounds in drivers/misc/lkdtm/bugs.c:400:16"
LIST = "list_add corruption. next->prev should be prev (ffffffff83a02030), but was 0000000000000000."
CHANGES = tuple(Mutation("map entry", index, 1) for index in range(4))


class Endings(_Target):
    """Images whose outcome is known by the changes that they have.

    Attributes:
        order: the changes of each image, in the order in which they were tried.
    """

    def __init__(self, guilty: tuple[int, ...], outcome: str = "crashed while reading") -> None:
        self.order: list[tuple[int, ...]] = []
        self._guilty = set(guilty)
        self._outcome = outcome

    def tried(self, changes: tuple[Mutation, ...]) -> TriedImage:
        """See `_Target.tried`."""
        indices = tuple(one.index for one in changes)
        self.order.append(indices)
        outcome = self._outcome if self._guilty <= set(indices) else "refused"
        return TriedImage("6.1.0", "lzo", changes, outcome, "said", PredictedResume("unknown"))


@pytest.mark.parametrize("guilty", [(2,), (0, 3), (1, 2, 3), (0, 1, 2, 3)])
def test_a_finding_is_reduced_to_the_fewest_changes(guilty: tuple[int, ...]) -> None:
    """It is those that are guilty, one image is the case, and all that were tried are there, once."""
    target = Endings(guilty)
    found = target.tried_and_reduced(CHANGES)
    (case,) = [one for one in found if one.is_case]
    assert tuple(one.index for one in case.changes) == guilty
    assert case.finding == "crashed while reading"
    assert [tuple(one.index for one in image.changes) for image in found] == target.order
    assert len(set(target.order)) == len(target.order) <= 15
    assert target.order[0] == (0, 1, 2, 3)


def test_an_image_without_a_finding_is_not_reduced() -> None:
    """One image is tried, and it is not a case."""
    target = Endings((1,), "whole")
    (found,) = target.tried_and_reduced(CHANGES)
    assert not found.is_case
    assert len(target.order) == 1


def test_a_report_is_not_a_crash() -> None:
    """The first lines of three sanitizers, before the image is put in its place; the kernel survives them."""
    log = f"[1] hello\n[2] {KASAN}\n[3] {UBSAN}\n[4] {LIST}\n[5] Disabling non-boot CPUs ...\n[6] BUG: KASAN: later\n"
    assert reports_in(log) == (KASAN, UBSAN, LIST)
    assert reports_in(log.replace("Disabling", "disabling")) == (KASAN, UBSAN, LIST, "BUG: KASAN: later")
    assert crash_in(log) is None
    crash = "BUG: kernel NULL pointer dereference, address: 0000000000000010"
    assert crash_in(f"{log}[7] {crash}\n[8] Oops: 0000") == crash
    assert READ.search("PM: hibernation: Read 67996 kbytes in 0.01 seconds")
    assert not READ.search("PM: Image loading done")
    assert LEAVES.search("[   10.514263] Disabling non-boot CPUs ...")
    assert all(SANITIZER.match(one.report + " x") for one in SANITIZERS)


def test_frames_of_zones() -> None:
    """Each populated zone from its first frame to its last one; an empty one has none. Lines of a guest of 6.1."""
    text = """Node 0, zone      DMA
  pages free     3840
        spanned  4095
        present  3998
        managed  3840
  start_pfn:           1
Node 0, zone    DMA32
        spanned  61408
        present  61408
        managed  56000
  start_pfn:           4096
Node 0, zone   Normal
        spanned  0
        present  0
        managed  0
Node 0, zone  Movable
        spanned  0
        present  0
  start_pfn:           70000
"""
    assert list(frames_in_zones(text.splitlines())) == [(1, 65503)]


def test_a_machine_that_waits_for_a_cpu_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which the host gives it no CPU does not count; without any, the first timeout is a hang."""
    asked: list[float] = []
    clock = iter(range(0, 10_000, waiting_module.HANG_SECONDS))
    monkeypatch.setattr("hibernaut.lab.parser.waiting.time.monotonic", lambda: float(next(clock)))

    def reply(_sequence: None, seconds: float, _doing: str) -> str:
        asked.append(seconds)
        if len(asked) < 4:
            raise LabError("timed out")
        return "a reply"

    port = SimpleNamespace(reply=reply, ended=False, lost=False)
    guest: Any = SimpleNamespace(port=port, qemu=SimpleNamespace(process=SimpleNamespace(pid=1)))
    most = waiting_module.HANG_SECONDS
    waited = iter((5.0, most - 5.0, 2 * most - 15.0, 3 * most - 25.0))
    monkeypatch.setattr(waiting_module, "waited_seconds", lambda _pid: next(waited))
    assert cast(object, waiting_module._reply_of_resume(guest)) == "a reply"
    assert asked == [most, most - 10, most - 20, most - 30]
    asked.clear()
    monkeypatch.setattr(waiting_module, "waited_seconds", lambda _pid: 5.0)
    with pytest.raises(LabError):
        waiting_module._reply_of_resume(guest)
    assert asked == [most]


def test_waiting_for_a_cpu_is_read_from_the_host() -> None:
    """Of a process that runs, and of none."""
    assert waiting_module.waited_seconds(os.getpid()) >= 0
    assert waiting_module.waited_seconds(1 << 30) == 0


@pytest.fixture
def sanitized(tmp_path: Path) -> GuestKernel:
    """Return a kernel with all sanitizers, by its configuration."""
    (tmp_path / ".config").write_text(SANITIZERS_CONFIG.read_text())
    return cast(GuestKernel, SimpleNamespace(tree=tmp_path))


def test_sanitizers_of_a_kernel(sanitized: GuestKernel, tmp_path: Path) -> None:
    """Those of its configuration, with LKDTM; none of a packaged kernel."""
    assert sanitizers_of(sanitized) == SANITIZERS
    text = (tmp_path / ".config").read_text()
    (tmp_path / ".config").write_text(text.replace("CONFIG_UBSAN_BOUNDS=y", ""))
    assert [one.option for one in sanitizers_of(sanitized)] == ["KASAN", "DEBUG_LIST"]
    (tmp_path / ".config").write_text(text.replace("CONFIG_LKDTM=y", ""))
    assert sanitizers_of(sanitized) == ()
    assert sanitizers_of(cast(GuestKernel, SimpleNamespace(tree=None))) == ()


def test_a_provoked_fault_that_is_not_reported_ends_the_run(sanitized: GuestKernel, tmp_path: Path) -> None:
    """Each sanitizer is tried by its own fault; a silent one is named, and so is an image that does not resume."""
    reports = {"WRITE_AFTER_FREE": KASAN, "ARRAY_BOUNDS": UBSAN, "CORRUPT_LIST_ADD": LIST}
    outcome = "whole"

    def resume(_disk: Path, before: Any) -> ResumeOutcome:
        (fault,) = [name for name in reports if name in before[0]]
        return ResumeOutcome(outcome, "said", "", 0.0, tuple(filter(None, [reports[fault]])))

    waiting = cast(WaitingMachine, SimpleNamespace(resume=resume))
    refuse_silent(sanitized, waiting, tmp_path)
    for one in SANITIZERS:
        saved, reports[one.fault] = reports[one.fault], "BUG: another"
        with pytest.raises(LabError, match=f"CONFIG_{one.option} does not report the fault {one.fault}"):
            refuse_silent(sanitized, waiting, tmp_path)
        reports[one.fault] = saved
    outcome = "crashed while reading"
    with pytest.raises(LabError, match="the image does not resume: crashed while reading"):
        refuse_silent(sanitized, waiting, tmp_path)


def kept_cases() -> dict[tuple[str, str], tuple[str, TriedImageDocument]]:
    """Return the cases of docs/parser whose changes are of the header or the info page, one for each set of parts.

    An `image_pages` is near `pages` or not, which is not kept: `tests/swsusp/test_kernel_loading.py` has such ones.
    """
    found: dict[tuple[str, str], tuple[str, TriedImageDocument]] = {}
    for document in kept_images(REPOSITORY / "docs/parser.md"):
        for one in document["images"]:
            parts = [change["part"] for change in one["changes"]]
            kept = all(part.startswith(("header: ", "info: ")) and part != "info: image_pages" for part in parts)
            if one["is_case"] and kept:
                found.setdefault((document["release"], " and ".join(parts)), (document["release"], one))
    return found


CASES = kept_cases()
BOUNDS = {*WORDS, 2}


@pytest.mark.parametrize("name", CASES, ids=" ".join)
def test_a_kept_case_is_predicted_again(name: tuple[str, str], golden: Golden, tmp_path: Path) -> None:
    """Its changes are made to another machine's image, without a guest: the same bound, or as far from the number."""
    release, case = CASES[name]
    path = tmp_path / "image"
    shutil.copyfile(golden("swap-6.1-lzo.img"), path)
    with open_image(path) as image:
        mutator = Mutator(image)
        changes = []
        for one in case["changes"]:
            part, was = one["part"], one["was"]
            assert was is not None
            width_bits = 8 * mutator._width(part)
            value, old = int(one["value"], 16), mutator._old(part, 0)
            if value not in BOUNDS:
                value = (old + value - int(was, 16)) % (1 << width_bits)
            changes.append(Mutation(part, 0, value))
        writes = mutator.writes(*changes)
        machine = ResumingMachine(
            "the guest", image.info.e820, image.info.physical_pages, 0, frames=FrameRanges.of([(1, 65503)])
        )
    with path.open("r+b") as file:
        for at, data in writes:
            file.seek(at)
            file.write(data)
    with open_plain(path) as disk:
        found = prediction(disk, image_rules_for_release(release), machine)
    assert found.end == case["predicted"], (found, case["change"])
