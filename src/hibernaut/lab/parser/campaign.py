# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated images given to a real kernel, each outcome beside the one that `inspect --for-kernel` predicts."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, combinations, islice
from pathlib import Path

from hibernaut.errors import CorruptImage, FormatError, LabError
from hibernaut.lab.cases.steps import open_saved
from hibernaut.lab.host.kernels import image_rules_of
from hibernaut.lab.laboratory import Hibernated, Lab
from hibernaut.lab.parser.mutations import Mutation, Mutator, Write
from hibernaut.lab.parser.sanitizers import refuse_silent
from hibernaut.lab.parser.waiting import ACCEPTED, IN_THE_PARSER, ResumeOutcome, WaitingMachine
from hibernaut.lab.record import SPARE_NAME
from hibernaut.lab.variants import Variant
from hibernaut.lab.vm.disks import copy_disk
from hibernaut.parallel import ordered_results
from hibernaut.swsusp import inspect_image
from hibernaut.swsusp.kernel_loading import FAILED
from hibernaut.swsusp.rules import ImageRules
from hibernaut.swsusp.verdict import Answer, ResumingMachine, Verdict, verdict_on
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.volume import Volume

__all__ = ["NOT_PREDICTED", "PredictedResume", "TriedImage", "prediction", "try_images"]

NOT_PREDICTED = frozenset({"unknown", "unread"})
"""Predictions that no outcome contradicts."""


@dataclass(frozen=True)
class PredictedResume:
    """The end of a resume as `inspect --for-kernel` predicts it.

    Attributes:
        end: "resumes", "refuses", "crashes", "resumes or refuses", "unknown", or "unread" if it does not read the
            image.
        words: words in which the kernel refuses, `?` for a value; empty if none are predicted.
        reason: its explanation; of "resumes or refuses", the condition.
    """

    end: str
    words: str = ""
    reason: str = ""


@dataclass(frozen=True)
class TriedImage:
    """A mutated image that a kernel was given.

    Attributes:
        release: the kernel.
        compressor: compressor of the image: lzo, lz4 or none.
        changes: what was changed; nothing in the first one.
        outcome: one of `waiting.OUTCOMES`.
        says: the kernel's words, or what was verified.
        predicted: the prediction.
        has_words: whether the kernel printed the words that are predicted.
        reports: what sanitizers of the kernel reported before the image was put in its place.
        is_case: whether it has a finding that no image with fewer of its changes has.
    """

    release: str
    compressor: str
    changes: tuple[Mutation, ...]
    outcome: str
    says: str
    predicted: PredictedResume
    has_words: bool = True
    reports: tuple[str, ...] = ()
    is_case: bool = False

    @property
    def agrees(self) -> bool | None:
        """Whether it went as predicted, words included; None if nothing was predicted."""
        refused = self.outcome == "refused" and self.has_words
        match self.predicted.end:
            case "unknown" | "unread":
                return None
            case "resumes":
                return self.outcome in ACCEPTED
            case "refuses":
                return refused
            case "crashes":
                return self.outcome == "crashed while reading"
        return refused or self.outcome in ACCEPTED

    @property
    def finding(self) -> str:
        """The kind of finding: not as predicted, crashed or hung in the parser, resumed wrong, or reported; or none."""
        if self.agrees is False:
            return f"otherwise: {self.outcome}"
        if self.reports:
            return "reported"
        return self.outcome if self.outcome in IN_THE_PARSER | {"wrong"} else ""


def try_images(
    lab: Lab,
    variant: Variant,
    folder: Path,
    *,
    images: int,
    seed: int,
    jobs: int = 2,
    several: bool = False,
    tell: Callable[[str], None] = lambda _step: None,
) -> Iterator[TriedImage]:
    """Save a guest, and give its kernel mutated images of it; the unchanged one first. Yields them in order.

    An image of several changes that has a finding is followed by those with fewer of its changes that were tried to
    find the fewest with the same finding.

    Args:
        lab: laboratory with the kernel.
        variant: kind of guest.
        folder: existing folder for disks and states.
        images: number of mutated images.
        seed: seed of the mutations.
        jobs: machines at a time.
        several: whether each image has two to four changes, not one.
        tell: called before each longer step.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: the guest does not hibernate, its unchanged image does not resume, or a sanitizer of its kernel does
            not report a fault that is provoked.
    """
    tell("a guest hibernates")
    saved = lab.hibernate(variant, folder)
    if saved.outcome != "hibernated":
        raise LabError(f"the guest did not hibernate: {saved.summary}")
    tell("another one boots, up to the resume")
    waiting = WaitingMachine(lab, saved.record, [saved.image, folder / SPARE_NAME], folder)
    with open_saved(saved) as image:
        info, mutator = image.info, Mutator(image, seed)
        machine = ResumingMachine(
            "the guest", info.e820, info.physical_pages, 0, lab.kernel.release, frames=waiting.frames
        )
        target = _Target(waiting, saved, folder, image_rules_of(lab.kernel), machine, mutator)
        unchanged = target.tried(())
        if unchanged.outcome != "whole":
            raise LabError(f"the unchanged image does not resume: {unchanged.outcome}: {unchanged.says}")
        if unchanged.reports:
            raise LabError(f"the unchanged image resumes, and the kernel reports: {unchanged.reports[0]}")
        refuse_silent(lab.kernel, waiting, saved.image)
        yield unchanged
        drawn = mutator.several() if several else ((one,) for one in mutator)
        chosen = (partial(target.tried_and_reduced, changes) for changes in islice(drawn, images))
        yield from chain.from_iterable(ordered_results(chosen, workers=jobs))


class _Target:
    """A kernel that is given images: each thread has a copy of the disk, changed for a moment."""

    def __init__(
        self,
        waiting: WaitingMachine,
        saved: Hibernated,
        folder: Path,
        rules: ImageRules,
        machine: ResumingMachine,
        mutator: Mutator,
    ) -> None:
        self._waiting = waiting
        self._saved = saved
        self._folder = folder
        self._rules = rules
        self._machine = machine
        self._mutator = mutator
        self._local = threading.local()

    def tried_and_reduced(self, changes: tuple[Mutation, ...]) -> list[TriedImage]:
        """Try an image; if it has a finding, reduce it to the fewest changes that have it. Returns all that were tried.

        Fewer changes are tried first, so that the first ones with the finding are the fewest.
        """
        first = self.tried(changes)
        if not first.finding:
            return [first]
        tried = [first]
        for count in range(1, len(changes)):
            for some in combinations(changes, count):
                one = self.tried(some)
                if one.finding == first.finding:
                    return [*tried, replace(one, is_case=True)]
                tried.append(one)
        return [replace(first, is_case=True), *tried[1:]]

    def tried(self, changes: tuple[Mutation, ...]) -> TriedImage:
        """Change the disk, predict, resume, and change it back."""
        disk = self._disk()
        before = _patched(disk, self._mutator.writes(*changes))
        try:
            predicted = prediction_of(disk, self._saved, self._rules, self._machine)
            found = self._waiting.resume(disk)
        finally:
            _patched(disk, before[::-1])
        return TriedImage(
            self._machine.release or "",
            self._mutator.image.compressor,
            changes,
            found.outcome,
            found.says,
            predicted,
            _has_words(predicted.words, found),
            found.reports,
        )

    def _disk(self) -> Path:
        path: Path | None = getattr(self._local, "disk", None)
        if path is None:
            path = self._local.disk = self._folder / f"mutated-{threading.get_ident()}.img"
            copy_disk(self._saved.image, path)
        return path


def _has_words(words: str, found: ResumeOutcome) -> bool:
    return not words or re.search(".*".join(map(re.escape, words.split("?"))), found.log) is not None


def _patched(disk: Path, writes: Sequence[Write]) -> list[Write]:
    """Write to a disk, and return the writes that restore it, the last one first to be done."""
    before = []
    with disk.open("r+b") as file:
        for at, data in writes:
            file.seek(at)
            before.append((at, file.read(len(data))))
            file.seek(at)
            file.write(data)
    return before


def prediction_of(disk: Path, saved: Hibernated, rules: ImageRules, machine: ResumingMachine) -> PredictedResume:
    """Return what `inspect --for-kernel` predicts of the image on a guest's disk."""
    with open_plain(disk) as file:
        return prediction(file, rules, machine, saved.record.offset, saved.record.partition)


def prediction(
    file: Volume, rules: ImageRules, machine: ResumingMachine, offset: int = 0, partition: int | None = None
) -> PredictedResume:
    """Return what `inspect --for-kernel` predicts of an image.

    Args:
        file: file with the image.
        rules: rules of the kernel.
        machine: known facts of the machine.
        offset: block of the swap header on its device.
        partition: number of the partition with it.
    """
    try:
        found = inspect_image(file, offset=offset, partition=partition)
    except CorruptImage as error:
        return PredictedResume("unread", reason=error.complaint)
    except FormatError as error:  # no image, which the kernel passes over
        return PredictedResume("refuses", reason=error.what)
    return _predicted(verdict_on(found, rules, machine))


def _predicted(verdict: Verdict) -> PredictedResume:
    """Return the prediction of a verdict: that of the first check that ends the resume, if one surely does."""
    depends = [check for check in verdict.checks if check.answer is Answer.DEPENDS]
    for check in verdict.checks:
        if check.answer is Answer.CRASHES:
            return PredictedResume("unknown" if depends else "crashes", reason=check.remark or "")
        if check.answer is Answer.REFUSES:
            return PredictedResume("refuses", FAILED if depends else check.message or "", check.remark or "")
    unknown = [check for check in verdict.checks if check.answer is Answer.UNKNOWN]
    for check in (*unknown, *depends):
        return PredictedResume("unknown" if unknown else "resumes or refuses", reason=check.remark or "")
    return PredictedResume("resumes")
