# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut find`: swap areas and images inside disks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions, PassphraseOptions
from hibernaut.errors import HibernautError
from hibernaut.kernel.banner import find_banner
from hibernaut.report.documents import DiskDocument, FindDocument, LayerDocument
from hibernaut.report.find import OPENED, find_text
from hibernaut.swsusp import open_image
from hibernaut.swsusp.area import locate_area
from hibernaut.swsusp.header import AreaState, area_state
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.layers import Layer, layers
from hibernaut.volumes.volume import Slice, Volume

__all__ = ["find"]


def find(
    disks: Annotated[
        list[Path],
        typer.Argument(metavar="DISK...", help="Disk, virtual disk, partition, or device; compressed or not."),
    ],
    passphrases: PassphraseOptions,
    output: OutputOptions,
) -> None:
    """List the swap areas inside disks, their state, and the options that open them.

    Looks into virtual disks, partitions, logical volumes, encrypted volumes and file systems.
    The exit status is 1 if no area holds an image.
    """
    given = passphrases.read()
    found = [_disk(disk, given) for disk in disks]
    if not given and any(layer["kind"] == "luks" for disk in found for layer in disk["layers"]):
        given = passphrases.read(ask=True)
        found = [_disk(disk, given) for disk in disks] if given else found
    document: FindDocument = {"disks": found}
    output.answer(document, find_text)
    if not any(layer["state"] in OPENED for disk in found for layer in disk["layers"]):
        raise typer.Exit(1)


def _disk(disk: Path, passphrases: list[bytes]) -> DiskDocument:
    with open_plain(disk) as file:
        size_bytes = file.size_bytes
    found = [_layer(disk, layer) for layer in layers(disk, passphrases)]
    return {"disk": str(disk), "size_bytes": size_bytes, "layers": found}


def _layer(disk: Path, layer: Layer) -> LayerDocument:
    state: AreaState | None = None
    detail = options = kernel = None
    if layer.volume is not None:
        try:
            state, detail = area_state(locate_area(layer.volume, offset=layer.block))
        except HibernautError as error:
            state, detail = "damaged", str(error)
        if state in OPENED:
            kernel = _kernel(layer.volume, layer.block)
        options = shlex.join([str(disk), *(["--volume", layer.specification] if layer.steps else [])])
    return {
        "volume": layer.specification,
        "kind": layer.kind,
        "size_bytes": layer.size_bytes,
        "detail": layer.detail,
        "problem": layer.problem,
        "offset_pages": None if layer.volume is None else layer.block,
        "state": state,
        "state_detail": detail,
        "kernel": kernel,
        "options": options,
    }


def _kernel(volume: Volume, block: int) -> str | None:
    """Return the banner of the kernel in an image; None if its memory does not show one, or cannot be read.

    Of another architecture, the kernel that the info page names.
    """
    try:
        with open_image(Slice(volume, 0, volume.size_bytes, volume.name), offset=block) as image:
            info = image.info
            if info.jump_address is None:
                return info.architecture.kernel if info.architecture else None
            return find_banner(image.memory(), info.cr3, info.jump_address)
    except HibernautError:
        return None
