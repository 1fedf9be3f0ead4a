# SPDX-License-Identifier: GPL-2.0-or-later
"""The map of physical memory for notebooks: a picture and its numbers, as `_repr_html_`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.errors import ContradictoryMemory, FormatError
from hibernaut.hibernation.frame_map import FrameMap, frame_map
from hibernaut.linux.source_tables import find_paging
from hibernaut.memory.contents import page_contents
from hibernaut.notebook import html_table
from hibernaut.report.charts import memory_chart
from hibernaut.report.frame_picture import frame_picture, layer_named
from hibernaut.report.page import need_report_extra
from hibernaut.report.text import size_text

if TYPE_CHECKING:
    from typing import Literal

    from hibernaut.sources import Source

__all__ = ["NotebookMap", "memory_map"]

WIDTH = 80


@dataclass(frozen=True, eq=False)
class NotebookMap:
    """The map of a source's memory. A notebook shows it as a picture with its numbers, a terminal as characters.

    Attributes:
        frames: the map.
        by: question that the picture answers: mapped, fate or use.
        name: name of the source.
    """

    frames: FrameMap
    by: Literal["mapped", "fate", "use"]
    name: str

    def _repr_html_(self) -> str:
        need_report_extra()
        layer = layer_named(self.by)
        codes = {"mapped": self.frames.mapped, "fate": self.frames.fate, "use": self.frames.use}[self.by]
        totals = self.frames.totals(codes)
        rows = [
            (word.label, totals[code], size_text(4096 * totals[code]), word.meaning)
            for code, word in sorted(layer.words.items())
            if code in totals
        ]
        table = html_table(f"{layer.title}: {self.name}", ("frames", "number", "size", "meaning"), rows)
        return f"<figure>{memory_chart(self.frames, layer)}</figure>\n{table}"

    def __str__(self) -> str:
        lines = frame_picture(self.frames, layer_named(self.by), WIDTH)
        return "\n".join("".join(text for text, _ in line) for line in lines)


def memory_map(
    source: Source, by: Literal["mapped", "fate", "use"] = "mapped", *, contents: bool = False
) -> NotebookMap:
    """Return the map of a source's memory, which a notebook shows.

    Args:
        source: an open dump or image (`hibernaut.open_memory`).
        by: question that the picture answers: the entry of the direct map, whether hibernation saves a frame, its use.
        contents: read all pages, so that zero pages are a class of their own.

    Raises:
        ContradictoryMemory: see `find_paging`.
        FormatError: the source is of another architecture, or its page tables are hostile.
        ValueError: there is no such question.
    """
    if by not in ("mapped", "fate", "use"):
        raise ValueError(f"no question {by!r}; expected mapped, fate or use")
    source.require_x86_64()
    try:
        paging = find_paging(source)
    except ContradictoryMemory:
        raise
    except FormatError:
        paging = None
    source = source if paging is None else paging.source or source
    zero = page_contents(source.memory).zero if contents else None
    return NotebookMap(frame_map(source, paging, zero), by, source.name)
