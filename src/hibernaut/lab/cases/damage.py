# SPDX-License-Identifier: GPL-2.0-or-later
"""The case of damaged and foreign images: `inspect` predicts each refusal in the kernel's own words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.lab.cases.case import CaseFailed
from hibernaut.lab.cases.steps import hibernate, open_saved, resume_from
from hibernaut.lab.host.kernels import image_rules_of
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.variants import variant_named
from hibernaut.lab.vm.disks import copy_disk
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp import Image, inspect_image
from hibernaut.swsusp.declarations import HEADER, INFO
from hibernaut.swsusp.verdict import Answer, ResumingMachine, Verdict, verdict_on
from hibernaut.volumes.files import open_plain

__all__ = ["refusals"]

Damage = Callable[[Image, Path], None]
"""Damages a copy of the disk that the image is on."""


def refusals(lab: Lab, folder: Path) -> str:
    """Damage copies of an image: the kernel refuses each one in the words that `inspect` predicts."""
    saved = hibernate(lab, variant_named("lzo"), folder)
    seen = []
    with open_saved(saved) as image:
        machine = ResumingMachine("the guest", image.info.e820, image.info.physical_pages, 0, lab.kernel.release)
        _expect_resume(lab, image, machine)
        for name, damage in DAMAGES.items():
            disk = folder / f"{name.replace(' ', '-')}.img"
            copy_disk(saved.image, disk)
            damage(image, disk)
            predicted = _predict_refusal(lab, disk, machine)
            resumed = resume_from(lab, saved, disk)
            if resumed.passed or not resumed.reason.startswith("fresh boot"):
                raise CaseFailed(f"{name}: the kernel must refuse: {resumed.reason}")
            if predicted and not re.search(_pattern(predicted), resumed.log):
                raise CaseFailed(f"{name}: predicted {predicted!r}, the kernel printed {resumed.reason}")
            seen.append(f"{name}: {predicted or 'no image, no message'}")
            disk.unlink()
    return "; ".join(seen)


def _expect_resume(lab: Lab, image: Image, machine: ResumingMachine) -> None:
    """Require that `inspect` predicts a resume from the undamaged image. Raises CaseFailed."""
    verdict = _verdict(lab, Path(image.area.file.name), machine)
    if verdict.resumes is not True:
        raise CaseFailed(f"predicted a refusal of an undamaged image: {verdict.checks}")


def _predict_refusal(lab: Lab, disk: Path, machine: ResumingMachine) -> str | None:
    """Return the message that `inspect` predicts; None if it finds no image. Raises CaseFailed for no refusal."""
    try:
        verdict = _verdict(lab, disk, machine)
    except FormatError as error:
        if isinstance(error, CorruptImage):
            raise
        return None
    found = [check for check in verdict.checks if check.answer is Answer.REFUSES]
    if not found:
        raise CaseFailed(f"{disk.stem}: inspect predicted no refusal")
    return found[0].message


def _verdict(lab: Lab, disk: Path, machine: ResumingMachine) -> Verdict:
    """Return the verdict of `inspect` for the guest's kernel. Raises FormatError if there is no image."""
    with open_plain(disk) as file:
        return verdict_on(inspect_image(file), image_rules_of(lab.kernel), machine)


def _pattern(message: str) -> str:
    """Return a message as a pattern, in which `?` stands for a value that is unknown beforehand."""
    return ".*".join(re.escape(part) for part in message.split("?"))


def _flip_bit(image: Image, disk: Path) -> None:
    """Flip a bit of compressed data, in the first block of the largest unit, where it cannot be padding."""
    index = image.stream.index
    block = int(image.swap_map.entries[index.first_entry[int(np.argmax(index.compressed_bytes))]])
    _patch(disk, image.area.offset_of(block) + PAGE_SIZE // 2, lambda old: bytes([old[0] ^ 0x10]), 1)


def _cut(image: Image, disk: Path) -> None:
    """End the disk in the middle of the image."""
    blocks = sorted(image.swap_map.blocks.tolist())
    os.truncate(disk, image.area.offset_of(blocks[len(blocks) // 2]))


def _other_memory_map(image: Image, disk: Path) -> None:
    """Make the info page that of a machine with another firmware memory map."""
    _patch_info(image, disk, "e820_checksum", lambda value: value ^ 1)


def _other_memory_size(image: Image, disk: Path) -> None:
    """Make the info page that of a machine with more memory."""
    _patch_info(image, disk, "num_physpages", lambda value: value + 0x8000)


def _other_magic(image: Image, disk: Path) -> None:
    """Make the info page that of a kernel with another format."""
    _patch_info(image, disk, "magic", lambda _value: 0x0123456789ABCDEF)


def _plain_swap(image: Image, disk: Path) -> None:
    """Put back the signature of an area without an image."""
    at = image.area.offset_of(image.area.header_block) + _offset_in(HEADER, "sig")
    _patch(disk, at, lambda _old: image.header.orig_sig, 10)


DAMAGES: dict[str, Damage] = {
    "flip bit": _flip_bit,
    "cut": _cut,
    "other memory map": _other_memory_map,
    "other memory size": _other_memory_size,
    "other magic": _other_magic,
    "plain swap": _plain_swap,
}


def _patch_info(image: Image, disk: Path, name: str, change: Callable[[int], int]) -> None:
    """Change a field of the info page."""
    at, size_bytes = _offset_in(INFO, name), INFO[name].itemsize
    block = image.area.offset_of(int(image.swap_map.entries[0]))
    _patch(
        disk,
        block + at,
        lambda old: change(int.from_bytes(old, "little")).to_bytes(size_bytes, "little"),
        size_bytes,
    )


def _offset_in(record: np.dtype[np.void], name: str) -> int:
    """Return the byte at which a field of a declared structure begins."""
    fields = record.fields
    assert fields is not None
    return fields[name][1]


def _patch(path: Path, at: int, change: Callable[[bytes], bytes], size_bytes: int) -> None:
    """Change bytes of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(size_bytes)
        file.seek(at)
        file.write(change(old))
