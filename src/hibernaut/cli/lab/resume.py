# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab resume`: a fresh machine resumes from a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import JsonOption, OffsetOption, PartitionOption, QuietOption, console, print_json
from hibernaut.cli.lab.options import DryRunOption, LabOptions, workshop
from hibernaut.lab.laboratory import Resumed
from hibernaut.lab.record import IMAGE_NAME, RECORD_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.variants import Variant

__all__ = ["resume"]

DEVICES = ("vda", "vdb")


def resume(
    *,
    image: Annotated[Path, typer.Argument(help="Disk with the image of a guest, or the folder that it is in.")],
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="DIR", help="Folder with the guest's record. Default: the folder of IMAGE."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="vda: in place of the guest's own disk. vdb: beside it.")
    ] = "vda",
    dump: Annotated[
        Path | None, typer.Option("--dump", metavar="FILE", help="Also dump RAM of the resumed guest, to this file.")
    ] = None,
    memory: Annotated[
        int, typer.Option("--memory", min=64, metavar="MIB", help="Memory, for an image without a lab record.")
    ] = 256,
    levels: Annotated[
        int, typer.Option("--levels", min=4, max=5, help="Levels of paging, for an image without a lab record.")
    ] = 4,
    partition: PartitionOption = None,
    offset: OffsetOption = 0,
    options: LabOptions,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Boot a fresh machine on a copy of a disk, let its kernel resume, and verify the resumed guest.

    PASS if the guest finds its pages and its direct map unchanged, else FAIL with the reason and exit status 1. The
    kernel is the one that hibernated, unless --kernel names another. An image without a lab record beside it can be
    resumed but not verified; --memory, --levels, --partition and --offset apply to it only.
    """
    folder = record or (image if image.is_dir() else image.parent)
    if device not in DEVICES:
        raise typer.BadParameter(f"{device!r} is neither {' nor '.join(DEVICES)}", param_hint="--device")
    if dump and dump.exists():
        raise typer.BadParameter(f"{dump} already exists", param_hint="--dump")
    if record is None and image.is_file() and not (folder / RECORD_NAME).exists():
        foreign = Variant("foreign", "machine of an image without a lab record", memory_mib=memory, levels=levels)
        if dry_run:
            return options.dry_run(foreign, folder)
        laboratory = options.lab()
        with workshop(None) as shop:
            resumed = laboratory.resume_foreign(foreign, image.absolute(), shop, partition=partition, offset=offset)
        return _print_outcome(resumed, json, quiet)
    saved = GuestRecord.load(folder)
    disks = _disks(image, folder, device)
    if dry_run:
        return options.dry_run(saved.variant, folder, default_kernel=saved.kernel)
    laboratory = options.lab(saved.kernel)
    partition, offset = (saved.partition, saved.offset) if device == "vda" else (None, 0)
    with workshop(None) as shop:
        done = laboratory.resume(saved, disks, shop, device=device, partition=partition, offset=offset, dump=dump)
    return _print_outcome(done, json, quiet)


def _disks(image: Path, folder: Path, device: str) -> list[Path]:
    """Return the machine's disks. Raises FileNotFoundError."""
    disk = image / IMAGE_NAME if image.is_dir() else image
    disks = [disk, folder / SPARE_NAME] if device == "vda" else [folder / IMAGE_NAME, disk]
    for path in disks:
        if not path.is_file():
            raise FileNotFoundError(2, "No such file or directory", str(path))
    return disks


def _print_outcome(done: Resumed, json: bool, quiet: bool) -> None:
    if json:
        print_json(
            {"passed": done.passed, "reason": done.reason, "seconds": round(done.seconds, 1), "facts": done.facts}
        )
    elif not quiet:
        console().print(f"{'PASS' if done.passed else 'FAIL'} {done.reason} ({done.seconds:.0f} s)")
    if not done.passed:
        raise typer.Exit(1)
