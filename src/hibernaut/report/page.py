# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a report: one file of HTML that asks no network, from templates of this package."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from hibernaut.errors import HibernautError, how_to_install
from hibernaut.memory.painting import paint
from hibernaut.report.charts import area_chart, compression_chart, order_chart, timeline_chart
from hibernaut.report.copy_timeline import CALL_WORDS, TimelineReport, words_of_calls
from hibernaut.report.documents import DifferenceDocument
from hibernaut.report.frame_cells import alarming_codes, cells_of_frames
from hibernaut.report.frame_runs import pack_runs
from hibernaut.report.frame_words import DIFFERENCE_LAYER, LAYERS, FrameComparison
from hibernaut.report.salvage import lost_part_name
from hibernaut.report.source_report import SourceReport
from hibernaut.report.text import counted, size_text

if TYPE_CHECKING:
    from jinja2 import Environment

    from hibernaut.hibernation.frame_map import FrameMap
    from hibernaut.memory.compare import MemoryDifference
    from hibernaut.report.frame_words import FrameLayer

__all__ = ["memory_map_data", "need_report_extra", "page_style", "report_page", "script_json", "template_environment"]

PACKAGES = ("jinja2", "matplotlib")
"""The extra `report`."""
MOST_RUNS = 1 << 21
"""Runs of a map at most: as many of random lengths and classes take less than 3 MiB. A machine of 16 GiB has no more
unless half of its frames differ from their neighbours."""
SHOWN_LOST = 200
"""Lost parts of an image, and ranges of lost frames, that are listed."""
SHOWN_CHARTS = 6
"""Regions with a chart of their own."""
MARKS = {"bad": "Problem", "warning": "Attention", "ok": "Fine", "unknown": "Not known", "fact": ""}


def need_report_extra() -> None:
    """Raise HibernautError if a library of the extra `report` is not installed."""
    import importlib.util

    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise HibernautError(
            f"{' and '.join(missing)} {verb} not installed: pages are made with {them}",
            advice=f"try: {how_to_install(*missing)}",
        )


def template_environment() -> Environment:
    """Return the templates of this package; every text is escaped unless it is marked as safe."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hibernaut.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size_text, hex=hex, counted=counted, part=lost_part_name)
    environment.globals["marks"] = MARKS
    return environment


def report_page(
    first: SourceReport,
    second: SourceReport | None = None,
    difference: DifferenceDocument | None = None,
    memory: MemoryDifference | None = None,
    timeline: TimelineReport | None = None,
    *,
    redacted: bool = False,
) -> str:
    """Return the page of a report.

    Args:
        first: SOURCE.
        second: OTHER, or None.
        difference: difference between both, or None.
        memory: the same by frames, or None.
        timeline: recorded copy loop of SOURCE, or None.
        redacted: whether names are left out, for the footer.
    """
    from importlib.metadata import version  # slow to import

    environment = template_environment()
    script = _asset("report.js")
    sources = [_shown(first, "source", "SOURCE", memory)]
    if second is not None:
        sources.append(_shown(second, "other", "OTHER", None))
    return environment.get_template("report.html.j2").render(
        version=version("hibernaut"),
        style=page_style(),
        script=_safe(script),
        script_hash=_safe(_hash_of(script)),
        first=first.document,
        second=None if second is None else second.document,
        sources=sources,
        difference=difference,
        timeline=None if timeline is None else _timeline(timeline),
        redacted=redacted,
    )


def _timeline(timeline: TimelineReport) -> dict[str, Any]:
    """Return the variables of a recorded copy loop in the template."""
    document = timeline.document
    return {
        "document": document,
        "steps": [{**step, "words": words_of_calls(step)} for step in document["steps"]],
        "calls": [
            (word, call, document["calls"][call]) for call, word in CALL_WORDS.items() if call in document["calls"]
        ],
        "chart": _safe(timeline_chart(timeline.found, CALL_WORDS, "timeline")) if timeline.found.steps else "",
    }


def memory_map_data(frames: FrameMap, memory: MemoryDifference | None = None) -> str:
    """Return the data of a map as JSON for a script element: runs, classes and words.

    Args:
        frames: the map.
        memory: difference to another source, which becomes one more layer; None for none.
    """
    layers: list[FrameLayer] = list(LAYERS)
    pages, codes = frames.pages, [frames.mapped, frames.fate, frames.use]
    if memory is not None:
        layers.append(DIFFERENCE_LAYER)
        pages, codes = _with_difference(frames, memory)
    counts = [
        np.bincount(some, weights=pages, minlength=max(layer.words) + 1).astype(int).tolist()
        for layer, some in zip(layers, codes, strict=True)
    ]
    each, pages, shown = _within_limit(pages, codes, layers, frames.end_pfn)
    packed = pack_runs(pages, *shown)
    return script_json(
        {
            "frames": frames.end_pfn,
            "each": each,
            "runs": packed.runs,
            "classes": packed.classes,
            "layers": [
                {
                    "key": layer.key,
                    "title": layer.title,
                    "words": [
                        {"key": word.key, "label": word.label, "meaning": word.meaning, "alarming": word.alarming}
                        for _, word in sorted(layer.words.items())
                    ],
                    "totals": totals,
                }
                for layer, totals in zip(layers, counts, strict=True)
            ],
            "text": packed.text,
        }
    )


def _within_limit(pages: Any, codes: list[Any], layers: list[FrameLayer], end_pfn: int) -> tuple[int, Any, list[Any]]:
    """Return runs, joined to cells of some frames if they are too many: frames of a cell, lengths, codes.

    A cell has the codes of most of its frames, or of frames that alarm. Totals are those of all frames all the same.
    """
    if len(pages) <= MOST_RUNS:
        return 1, pages, codes
    each = 1
    while end_pfn > each * MOST_RUNS // 2:
        each *= 2
    keys = np.zeros(len(pages), dtype=np.int64)
    for some in codes:
        keys = keys << 8 | some
    classes, which = np.unique(keys, return_inverse=True)
    columns = [(classes >> shift & 0xFF).astype(np.uint8) for shift in range(8 * (len(codes) - 1), -1, -8)]
    alarming = np.zeros(256, dtype=np.bool_)
    for layer, column in zip(layers, columns, strict=True):
        alarming[: len(classes)] |= alarming_codes(layer.words)[column]
    start = np.cumsum(pages) - pages
    cells = cells_of_frames(start, which.reshape(-1).astype(np.uint8), end_pfn, alarming, each)
    first = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
    lengths = np.diff(first * each, append=end_pfn)
    return each, lengths, [column[cells[first]] for column in columns]


def script_json(value: Any) -> str:
    """Return a value as JSON that no HTML parser takes for an end of its script element."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _with_difference(frames: FrameMap, memory: MemoryDifference) -> tuple[Any, list[Any]]:
    """Return the runs of a map with the difference as a fourth code: lengths, and codes of each dimension."""
    layers = [
        (memory.equal, FrameComparison.EQUAL),
        (memory.different, FrameComparison.DIFFERENT),
        (memory.only_first, FrameComparison.ONLY_FIRST),
        (memory.only_second, FrameComparison.ONLY_SECOND),
    ]
    start, (compared,) = paint(frames.end_pfn, layers)
    edges = np.unique(np.concatenate((start, frames.start_pfn)))
    mine = np.searchsorted(frames.start_pfn, edges, side="right") - 1
    theirs = np.searchsorted(start, edges, side="right") - 1
    codes = [frames.mapped[mine], frames.fate[mine], frames.use[mine], compared[theirs]]
    return np.diff(edges, append=frames.end_pfn), codes


def _shown(report: SourceReport, name: str, role: str, memory: MemoryDifference | None) -> dict[str, Any]:
    """Return the variables of a source in the template."""
    found = report.found
    image = found.source.any_image
    layers = [*LAYERS, *([DIFFERENCE_LAYER] if memory is not None else [])]
    return {
        "id": name,
        "role": role,
        "document": report.document,
        "parts": report.parts,
        "shown_lost": SHOWN_LOST,
        "map": {
            "name": name,
            "what": f"the physical memory of {role}",
            "layers": layers,
            "data": _safe(memory_map_data(found.frames, memory)),
        },
        "charts": [
            _safe(order_chart(region, found.frames.end_pfn, f"{name}-order-{number}"))
            for number, region in enumerate(found.order.regions[:SHOWN_CHARTS])
        ],
        "compression_chart": _safe(compression_chart(image, name)) if image is not None else "",
        "area_chart": _safe(area_chart(image, name)) if report.document["area"] and image else "",
    }


def page_style() -> Any:
    """Return the style sheet of pages, marked as safe for a template."""
    return _safe(_asset("report.css"))


def _asset(name: str) -> str:
    return (resources.files("hibernaut.report") / "templates" / name).read_text()


def _hash_of(script: str) -> str:
    """Return the source expression by which a Content-Security-Policy admits one script alone."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _safe(text: str) -> Any:
    """Return text of this package, or made by it, that a template does not escape."""
    from markupsafe import Markup

    return Markup(text)  # nosec B704 # text of this package, or made by it
