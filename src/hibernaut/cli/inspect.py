# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut inspect IMAGE`: what is in a hibernation image, and is it intact?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.common import (
    BaseOption,
    JsonOption,
    OffsetOption,
    PartitionOption,
    QuietOption,
    console,
    hex_or_none,
    print_json,
    progress_bar,
)
from hibernaut.cli.machine import machine_named
from hibernaut.errors import FormatError
from hibernaut.kernel_line import RulesFrom
from hibernaut.report.text import inspection_text
from hibernaut.swsusp import Image, Inspection, inspect_image
from hibernaut.swsusp.rules import ImageRules, image_rules_for_release, image_rules_probed
from hibernaut.swsusp.verdict import ResumingMachine, Verdict, verdict_on
from hibernaut.volumes.files import open_plain

__all__ = ["inspect"]


def inspect(
    image: Annotated[Path, typer.Argument(help="The swap area: a partition's image, or a disk's; compressed or not.")],
    offset: OffsetOption = 0,
    partition: PartitionOption = None,
    base: BaseOption = None,
    digests: Annotated[
        bool, typer.Option("--digests", help="Also SHA-256 of the frame list and of the pages.")
    ] = False,
    for_kernel: Annotated[
        str | None,
        typer.Option(
            "--for-kernel",
            metavar="RELEASE",
            help="Would this kernel resume from it? 6.1, or in full. Default: the one that runs on MACHINE.",
        ),
    ] = None,
    on_machine: Annotated[
        str | None,
        typer.Option(
            "--on-machine",
            metavar="MACHINE",
            help="And on this machine? `this`, a RAM dump or another image of it, or a JSON file of its facts.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what is in a hibernation image and whether it is intact; exit status 1 if it is not."""
    asked = _asked(for_kernel, on_machine)
    with open_plain(image) as file, progress_bar(f"reading {image}", None, quiet) as advance:
        found = inspect_image(file, offset=offset, partition=partition, base=base, progress=advance)
        document = _document(found, offset)
        if digests and found.image and not found.problems:
            document |= _digests(found.image)
        verdict = verdict_on(found, *asked[:2]) if asked else None
        if asked and verdict:
            document["verdict"] = _verdict_document(verdict, asked[2])
    if json:
        print_json(document)
    elif not quiet:
        console().print(inspection_text(document))
    if found.problems or (verdict and verdict.resumes is False):
        raise typer.Exit(1)


def _asked(for_kernel: str | None, on_machine: str | None) -> tuple[ImageRules, ResumingMachine, RulesFrom] | None:
    """Kernel and machine of a verdict, and where the rules come from; None if none is asked for.

    Raises:
        FormatError, OSError: the machine or its kernel is not known.
    """
    if for_kernel is None and on_machine is None:
        return None
    machine = machine_named(on_machine) if on_machine is not None else ResumingMachine("a machine that is not known")
    if for_kernel is not None:
        return image_rules_for_release(for_kernel), machine, "line"
    if machine.release is None:
        raise FormatError("does not say which kernel runs there; give --for-kernel", source=on_machine)
    probed = image_rules_probed(machine.kernel, machine.release)
    return probed.rules, machine, probed.rules_from


def _verdict_document(verdict: Verdict, rules_from: RulesFrom) -> dict[str, Any]:
    return {
        "kernel": verdict.rules.line,
        "rules_from": rules_from,
        "machine": verdict.machine.name,
        "checks": [
            {
                "check": check.check,
                "answer": str(check.answer),
                "message": check.message,
                "remark": check.remark,
                "where": check.where,
            }
            for check in verdict.checks
        ],
        "resumes": verdict.resumes,
    }


def _document(found: Inspection, offset: int) -> dict[str, Any]:
    header, info, image = found.header, found.info, found.image
    index = image.stream.index if image else None
    compressed = header.compressor != "none"
    zero_pages = int(image.zero.sum()) if image else None
    return {
        "compressor": header.compressor,
        "flags": header.flags,
        "offset_pages": offset,
        "crc32": {
            "stored": hex_or_none(header.crc32),
            "computed": hex_or_none(found.computed_crc),
            "ok": found.crc_ok,
        },
        "hw_sig": hex_or_none(header.hw_sig),
        "cr3": hex_or_none(info.cr3 if info else None),
        "jump_address": hex_or_none(info.jump_address if info else None),
        "jump_address_phys": hex_or_none(info.jump_address_phys if info else None),
        "e820_checksum": hex_or_none(info.e820_checksum if info else None),
        "physical_pages": info.physical_pages if info else None,
        "image_pages": info.image_pages if info else None,
        "pages": info.pages if info else None,
        "saved_pages": len(image.pfns) if image else None,
        "zero_pages": zero_pages,
        "stored_pages": len(image.pfns) - zero_pages if image and zero_pages is not None else None,
        "meta_pages": info.meta_pages if info else None,
        "map_pages": len(found.swap_map.map_blocks) if found.swap_map else None,
        "units": (len(index) if compressed else 0) if index else None,
        "compressed_bytes": int(index.compressed_bytes.sum()) if index else None,
        "first_map_block": header.image,
        "problems": [{"what": problem.what, "where": problem.where} for problem in found.problems],
    }


def _digests(image: Image) -> dict[str, str]:
    """SHA-256 of the listed frames as little-endian u64, and of all stored pages in stream order."""
    pages = hashlib.sha256()
    for _, chunk in image.chunks():
        pages.update(chunk.data)
    return {
        "sha256_pfns": hashlib.sha256(image.pfns.astype("<u8").tobytes()).hexdigest(),
        "sha256_stored_pages": pages.hexdigest(),
    }
