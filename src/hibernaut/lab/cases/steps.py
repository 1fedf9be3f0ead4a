# SPDX-License-Identifier: GPL-2.0-or-later
"""Steps that several cases share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.laboratory import Hibernated, Lab, Resumed
from hibernaut.lab.record import SPARE_NAME
from hibernaut.lab.takeover import Takeover
from hibernaut.lab.variants import Variant
from hibernaut.swsusp import Image, open_image, rewrite_image
from hibernaut.swsusp.codecs import CompressorName

__all__ = ["hibernate", "open_saved", "require_intact", "require_passed", "resume_from", "resume_rewritten"]


def hibernate(lab: Lab, variant: Variant, folder: Path) -> Hibernated:
    """Let a guest hibernate. Raises CaseFailed if it does not."""
    done = lab.hibernate(variant, folder)
    if done.outcome != "hibernated":
        raise CaseFailed(f"the guest did not hibernate: {done.summary}")
    return done


def open_saved(saved: Hibernated) -> Image:
    """Open the image on the guest's disk."""
    return open_image(saved.image, offset=saved.record.offset, partition=saved.record.partition)


def resume_from(lab: Lab, saved: Hibernated, disk: Path, questions: Sequence[str] = ()) -> Resumed:
    """Resume from a disk in place of the guest's own."""
    record = saved.record
    disks = [disk, saved.folder / SPARE_NAME]
    return lab.resume(record, disks, disk.parent, partition=record.partition, offset=record.offset, questions=questions)


def resume_rewritten(lab: Lab, saved: Hibernated, compressor: CompressorName) -> str:
    """Rewrite the guest's image, resume from the copy, and return a description of the copy. Raises CaseFailed."""
    out = saved.folder / f"rewritten-{compressor}.img"
    with open_saved(saved) as image:
        written = rewrite_image(image, out, compressor=compressor)
    require_passed(resume_from(lab, saved, out), f"rewritten with {compressor}")
    return f"{compressor}: {written.stored_pages} pages in {written.blocks} blocks"


def require_passed(resumed: Resumed, image: str) -> str:
    """Return the reason of a resume that passed. Raises CaseFailed if it did not; `image` names the image."""
    if not resumed.passed:
        raise CaseFailed(f"{image}: {resumed.reason}")
    return resumed.reason


def require_intact(taken: Takeover) -> None:
    """Require that our image resumes with an unchanged direct map. Raises CaseFailed."""
    require_passed(taken.resumed, "our image")
    if taken.findings:
        raise CaseFailed(f"direct map: {taken.findings[0]}")
