# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that a source is mounted as: its memory in the formats that `convert` writes, and the machine inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hibernaut.errors import HibernautError
from hibernaut.kernel.core_file import core_layout, refuse_core
from hibernaut.memory.dump_layout import DumpVolume
from hibernaut.mount.machine import machine_files
from hibernaut.mount.tree import ComputedFile, Node, PlacedFile
from hibernaut.report.images import inspect_document
from hibernaut.report.json_text import json_text
from hibernaut.report.salvage import salvaged_inspect_document
from hibernaut.swsusp.checker import inspect_opened

if TYPE_CHECKING:
    from hibernaut.memory.dump_layout import DumpLayout
    from hibernaut.report.documents import InspectDocument
    from hibernaut.sources import Source

__all__ = ["files_of"]


def files_of(
    source: Source, *, vaddr_base: int | None, root: tuple[int, int] | None, offset: int = 0
) -> tuple[dict[str, Node], tuple[str, ...]]:
    """Return the files of a source by name, and a remark on each that is left out. No page is read before a file is.

    Args:
        source: the memory.
        vaddr_base: as for `core_file.convert`.
        root: as for `core_file.convert`.
        offset: block of the swap header of an image, for its document.
    """
    files: dict[str, Node] = {}
    remarks: list[str] = []

    def add(name: str, make: Callable[[], Node]) -> None:
        try:
            files[name] = make()
        except HibernautError as error:
            remarks.append(f"{name} is left out: {error.statement}")

    def placed(name: str, layout: Callable[[], DumpLayout]) -> PlacedFile:
        return PlacedFile(lambda: DumpVolume(layout(), source.memory, name))

    def core() -> PlacedFile:
        refuse_core(source)
        return placed("vmcore", lambda: core_layout(source, "elf", vaddr_base=vaddr_base, root=root))

    def lime() -> PlacedFile:
        layout = core_layout(source, "lime")
        return placed("memory.lime", lambda: layout)

    add("vmcore", core)
    add("memory.lime", lime)
    add("memory.raw", lambda: placed("memory.raw", lambda: core_layout(source, "raw")))
    if source.any_image is not None:
        files["image.json"] = ComputedFile(lambda: json_text(_document(source, offset)).encode())
    if source.salvaged is None and source.foreign is None:
        files |= machine_files(source)
    return files, tuple(remarks)


def _document(source: Source, offset: int) -> InspectDocument:
    """Return the document of the image of a source, as `inspect --no-machine` has it. Reads all of the image."""
    if source.salvaged is not None:
        return salvaged_inspect_document(source.salvaged, offset)
    if source.image is None:
        raise ValueError("the source is not an image")
    return inspect_document(inspect_opened(source.image), offset)
