# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab resume`: a fresh machine resumes from a disk."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DryRunOption, LabOptions, show_plan, workshop
from hibernaut.cli.options import AreaOptions, OutputOptions
from hibernaut.lab.laboratory import Resumed
from hibernaut.lab.record import IMAGE_NAME, RECORD_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.variants import Variant
from hibernaut.lab.vm.qemu import Disk
from hibernaut.report.documents import ResumeDocument

__all__ = ["resume"]


SECTOR_BYTES = 512


class Device(StrEnum):
    """Disks of a guest."""

    VDA = "vda"
    VDB = "vdb"


def resume(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="Disk with the image of a guest, or the folder that it is in.")
    ],
    area: AreaOptions,
    options: LabOptions,
    output: OutputOptions,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="DIR", help="Folder with the guest's record. Default: the folder of IMAGE."),
    ] = None,
    device: Annotated[
        Device,
        typer.Option("--device", help="Place of the disk: vda, the guest's own, or vdb, beside it. Default: vda."),
    ] = Device.VDA,
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump", metavar="FILE", help="Also dump RAM of the resumed guest, to this file. Default: no dump."
        ),
    ] = None,
    memory: Annotated[
        int,
        typer.Option(
            "--memory", min=64, metavar="MIB", help="Memory, for an image without a lab record. Default: 256."
        ),
    ] = 256,
    levels: Annotated[
        int,
        typer.Option(
            "--levels",
            min=4,
            max=5,
            metavar="4|5",
            help="Levels of paging, for an image without a lab record. Default: 4.",
        ),
    ] = 4,
    dry_run: DryRunOption = False,
) -> None:
    """Boot a fresh machine on a copy of a disk, let its kernel resume, and verify the resumed guest.

    PASS if the guest finds its pages and its direct map unchanged, else FAIL with the reason and exit status 1. The
    kernel is the one that hibernated, unless --kernel names another. An image without a lab record beside it can be
    resumed but not verified; --memory, --levels and the place of the image are for such an image only.
    """
    folder = record or (image if image.is_dir() else image.parent)
    if dump and dump.exists():
        raise typer.BadParameter(f"{dump} already exists; give another name", param_hint="--dump")
    if record is None and image.is_file() and not (folder / RECORD_NAME).exists():
        foreign = Variant("foreign", "machine of an image without a lab record", memory_mib=memory, levels=levels)
        if dry_run:
            return show_plan(output, options.planned(foreign, folder))
        laboratory = options.lab()
        with workshop(None) as shop:
            disk = Disk(image.absolute(), keep=False, base=_base(area))
            resumed = laboratory.resume_foreign(foreign, disk, shop, partition=area.partition, offset=area.offset)
        return _answer(resumed, output)
    saved = GuestRecord.load(folder)
    disks = _disks(image, folder, device)
    if dry_run:
        return show_plan(output, options.planned(saved.variant, folder, default_kernel=saved.kernel))
    laboratory = options.lab(saved.kernel)
    partition, offset = (saved.partition, saved.offset) if device is Device.VDA else (None, 0)
    with workshop(None) as shop:
        done = laboratory.resume(saved, disks, shop, device=device.value, partition=partition, offset=offset, dump=dump)
    return _answer(done, output)


def _base(area: AreaOptions) -> int:
    base = area.base or 0
    if base % SECTOR_BYTES:
        raise typer.BadParameter(f"{base} is not a multiple of {SECTOR_BYTES}", param_hint="--base")
    return base


def _disks(image: Path, folder: Path, device: Device) -> list[Path]:
    """Return the machine's disks. Raises FileNotFoundError."""
    disk = image / IMAGE_NAME if image.is_dir() else image
    disks = [disk, folder / SPARE_NAME] if device is Device.VDA else [folder / IMAGE_NAME, disk]
    for path in disks:
        if not path.is_file():
            raise FileNotFoundError(2, "No such file or directory", str(path))
    return disks


def _answer(done: Resumed, output: OutputOptions) -> None:
    document: ResumeDocument = {
        "passed": done.passed,
        "reason": done.reason,
        "seconds": round(done.seconds, 1),
        "facts": done.facts,
    }
    output.answer(document, lambda _: f"{'PASS' if done.passed else 'FAIL'} {done.reason} ({done.seconds:.0f} s)")
    if not done.passed:
        raise typer.Exit(1)
