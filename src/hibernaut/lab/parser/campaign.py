# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutated images given to a real kernel, each outcome beside the one that `inspect --for-kernel` predicts."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from hibernaut.errors import CorruptImage, FormatError, LabError
from hibernaut.lab.cases.steps import open_saved
from hibernaut.lab.host.kernels import image_rules_of
from hibernaut.lab.laboratory import Hibernated, Lab
from hibernaut.lab.parser.mutations import Mutation, Mutator, Write
from hibernaut.lab.parser.waiting import ACCEPTED, ResumeOutcome, WaitingMachine
from hibernaut.lab.record import SPARE_NAME
from hibernaut.lab.variants import Variant
from hibernaut.lab.vm.disks import copy_disk
from hibernaut.parallel import ordered_results
from hibernaut.swsusp import inspect_image
from hibernaut.swsusp.rules import ImageRules
from hibernaut.swsusp.verdict import Answer, ResumingMachine, verdict_on
from hibernaut.volumes.files import open_plain

__all__ = ["TriedImage", "prediction", "try_images"]


@dataclass(frozen=True)
class TriedImage:
    """A mutated image that a kernel was given.

    Attributes:
        release: the kernel.
        mutation: what was changed.
        outcome: one of `waiting.OUTCOMES`.
        says: the kernel's words, or what was verified.
        predicted: "resumes", "refuses", "unknown", or "unread" if it does not read the image: `inspect --for-kernel`.
        words: the words in which the kernel refuses, as predicted, `?` for a value; empty if none are.
        has_words: whether the kernel printed them.
    """

    release: str
    mutation: Mutation
    outcome: str
    says: str
    predicted: str
    words: str = ""
    has_words: bool = True

    @property
    def agrees(self) -> bool | None:
        """Whether it went as predicted, words included; None if nothing was predicted."""
        if self.predicted in ("unknown", "unread"):
            return None
        if self.predicted == "resumes":
            return self.outcome in ACCEPTED
        return self.outcome == "refused" and self.has_words


def try_images(
    lab: Lab,
    variant: Variant,
    folder: Path,
    *,
    images: int,
    seed: int,
    jobs: int = 2,
    tell: Callable[[str], None] = lambda _step: None,
) -> Iterator[TriedImage]:
    """Save a guest, and give its kernel mutated images of it; the unchanged one first. Yields them in order.

    Args:
        lab: laboratory with the kernel.
        variant: kind of guest; its image must be compressed.
        folder: existing folder for disks and states.
        images: number of mutated images.
        seed: seed of the mutations.
        jobs: machines at a time.
        tell: called before each longer step.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: the guest does not hibernate, or its unchanged image does not resume.
    """
    tell("a guest hibernates")
    saved = lab.hibernate(variant, folder)
    if saved.outcome != "hibernated":
        raise LabError(f"the guest did not hibernate: {saved.summary}")
    tell("another one boots, up to the resume")
    waiting = WaitingMachine(lab, saved.record, [saved.image, folder / SPARE_NAME], folder)
    with open_saved(saved) as image:
        info, mutator = image.info, Mutator(image, seed)
        machine = ResumingMachine("the guest", info.e820, info.physical_pages, 0, lab.kernel.release)
        target = _Target(waiting, saved, folder, image_rules_of(lab.kernel), machine)
        unchanged = target.tried(Mutation("nothing", 0, 0), ())
        if unchanged.outcome != "whole":
            raise LabError(f"the unchanged image does not resume: {unchanged.outcome}: {unchanged.says}")
        yield unchanged
        chosen = ((mutation, mutator.writes(mutation)) for mutation in islice(mutator, images))
        yield from ordered_results((partial(target.tried, *one) for one in chosen), workers=jobs)


class _Target:
    """A kernel that is given images: each thread has a copy of the disk, changed for a moment."""

    def __init__(
        self, waiting: WaitingMachine, saved: Hibernated, folder: Path, rules: ImageRules, machine: ResumingMachine
    ) -> None:
        self._waiting = waiting
        self._saved = saved
        self._folder = folder
        self._rules = rules
        self._machine = machine
        self._local = threading.local()

    def tried(self, mutation: Mutation, writes: Sequence[Write]) -> TriedImage:
        """Change the disk, predict, resume, and change it back."""
        disk = self._disk()
        before = _patched(disk, writes)
        try:
            predicted, words = prediction(disk, self._saved, self._rules, self._machine)
            found = self._waiting.resume(disk)
        finally:
            _patched(disk, before[::-1])
        return TriedImage(
            self._machine.release or "",
            mutation,
            found.outcome,
            found.says,
            predicted,
            words,
            _has_words(words, found),
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


def prediction(disk: Path, saved: Hibernated, rules: ImageRules, machine: ResumingMachine) -> tuple[str, str]:
    """Return what `inspect --for-kernel` says of an image, and the words of the first refusal."""
    record = saved.record
    with open_plain(disk) as file:
        try:
            verdict = verdict_on(inspect_image(file, offset=record.offset, partition=record.partition), rules, machine)
        except CorruptImage:
            return "unread", ""
        except FormatError:  # no image, which the kernel passes over
            return "refuses", ""
    for check in verdict.checks:
        if check.answer is Answer.REFUSES:
            return "refuses", check.message or ""
    return ("unknown" if verdict.resumes is None else "resumes"), ""
