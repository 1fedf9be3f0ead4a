# SPDX-License-Identifier: GPL-2.0-or-later
"""The layers of a disk, and the swap areas in them, as text."""

from __future__ import annotations

from hibernaut.report.documents import FindDocument, LayerDocument
from hibernaut.report.text import columns, size_text

__all__ = ["OPENED", "find_text"]


OPENED = ("image", "uswsusp")
"""States of swap areas whose image is read."""


def find_text(document: FindDocument) -> str:
    """Return the layers of each disk, then the problems, then the options that open each image."""
    lines: list[str] = []
    for disk in document["disks"]:
        lines += [""] if lines else []
        lines.append(f"{disk['disk']}  {size_text(disk['size_bytes'])}")
        rows = [_row(layer) for layer in disk["layers"]]
        lines += [f"  {line}" for line in columns(rows)] if rows else ["  nothing that is known"]
        lines += [f"  ! {layer['problem']}" for layer in disk["layers"] if layer["problem"]]
        for layer in disk["layers"]:
            if layer["state"] in OPENED:
                lines += [f"  open with: {layer['options']}"]
                lines += [f"    {layer['kernel']}"] if layer["kernel"] else []
            if layer["state"] == "used up":
                lines += [f"  left of it: {layer['options']} --consumed"]
    return "\n".join(lines)


def _row(layer: LayerDocument) -> list[str]:
    state = f"{layer['state']}: {layer['state_detail']}" if layer["state"] else layer["detail"]
    return [layer["volume"] or "-", layer["kind"], size_text(layer["size_bytes"]), state]
