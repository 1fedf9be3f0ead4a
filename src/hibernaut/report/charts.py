# SPDX-License-Identifier: GPL-2.0-or-later
"""Charts as SVG inside a page: drawn by matplotlib, coloured by the page's style sheet, with a title and a description.

Colours are drawn as placeholders, each of which becomes a CSS variable, so that a chart follows light and dark.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from hibernaut.report.frame_cells import alarming_codes, cells_of_frames
from hibernaut.report.text import counted, size_text

if TYPE_CHECKING:
    from hibernaut.hibernation.copy_order import RegionInOrder
    from hibernaut.hibernation.copy_timeline import CopyTimeline, TimelineStep
    from hibernaut.hibernation.frame_map import FrameMap
    from hibernaut.report.frame_words import FrameLayer
    from hibernaut.swsusp import Image
    from hibernaut.swsusp.salvage import SalvagedImage

__all__ = ["area_chart", "compression_chart", "memory_chart", "order_chart", "page_colours", "timeline_chart"]

INK, FAINT, MAIN, SECOND, ALARM, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    MAIN: "var(--accent)",
    SECOND: "var(--second)",
    ALARM: "var(--bad)",
    PAPER: "var(--paper)",
}
FALLBACKS = "--ink: currentColor; --line: #888; --sans: sans-serif; max-width: 46rem"
"""Colours of a chart outside a page of this package."""
SHOWN_TABLES = 8
"""Page tables of a loop with a line in its chart."""
MAP_COLUMNS, MAP_ROWS = 128, 48
BINS = 240
"""Bars of a chart at most: neighbouring units, or blocks, share one."""


def compression_chart(image: Image | SalvagedImage, name: str) -> str:
    """Return the chart of the size of units after compression, in the order of the stream; empty if not compressed.

    Units that are lost, or have no certain number, leave a gap; a band above the bars shows where units are lost.

    Args:
        image: the image.
        name: prefix of the chart's name in the page.
    """
    units = image.read_units
    placed = units.number >= 0
    number = units.number[placed]
    total = units.total or int(number.max(initial=-1)) + 1
    if not len(number):
        return ""
    bins = min(BINS, total)
    which = number * bins // total
    sizes = np.bincount(which, weights=units.compressed_bytes[placed], minlength=bins)
    pages = np.bincount(which, weights=units.rows[placed], minlength=bins)
    percent = 100 * sizes / (4096 * np.maximum(pages, 1))
    all_which = np.arange(total) * bins // total
    first = np.searchsorted(all_which, np.arange(bins))
    lost = np.bincount(which, minlength=bins) < np.bincount(all_which, minlength=bins)
    whole = 100 * int(units.compressed_bytes.sum()) / (4096 * units.stored_rows)
    top = max(100.0, float(percent.max()))

    def draw(axes: Any) -> None:
        edges = np.append(first, total)
        axes.stairs(percent, edges, fill=True, color=MAIN)
        axes.axhline(whole, color=ALARM, linewidth=1)
        if lost.any():
            axes.stairs(np.where(lost, top, np.nan), edges, baseline=0.94 * top, fill=True, color=ALARM)
        axes.set_xlabel("unit, in the order of the stream")
        axes.set_ylabel("% of its pages")
        axes.set_xlim(0, total)
        axes.set_ylim(0, top)

    there = percent[pages > 0]
    description = (
        f"{counted(len(units), 'unit')} of {units.unit_rows} pages. All together have {whole:.1f} % of their"
        f" length (the line); the smallest {len(there)} of them {there.min():.1f} %, the largest {there.max():.1f} %."
        if bins == total
        else f"{counted(len(units), 'unit')} of {units.unit_rows} pages, {bins} bars. All together have"
        f" {whole:.1f} % of their length (the line)."
    )
    if lost.any():
        description += (
            f" {counted(total - len(number), 'unit')} of {total} are lost: bars have a mark above them where one is."
        )
    if not placed.all():
        description += f" {counted(len(units) - len(number), 'unit')} without a certain number have no bar."
    return _svg(f"{name}-compression", "Length of each unit after compression", description, draw)


def area_chart(image: Image | SalvagedImage, name: str) -> str:
    """Return the chart of the blocks of an image in its swap area. Arguments as for `compression_chart`."""
    blocks, placed = image.area.blocks, image.blocks
    bins = min(BINS, blocks)
    edges = np.arange(bins + 1) * blocks // bins
    sizes = np.diff(edges)
    data, maps, lost = (np.histogram(some, edges)[0] / sizes * 100 for some in (placed.pages, placed.maps, placed.lost))

    def draw(axes: Any) -> None:
        axes.stairs(data + maps, edges, baseline=data, fill=True, color=SECOND, label="pages of its swap map")
        axes.stairs(data, edges, fill=True, color=MAIN, label="pages of the image")
        if len(placed.lost):
            top = data + maps + lost
            axes.stairs(top, edges, baseline=data + maps, fill=True, color=ALARM, label="what is lost of it")
        axes.axvline(image.area.header_block, color=ALARM, linewidth=2, label="header of the area")
        axes.set_xlabel("block of the device (4 KiB)" if image.area.page_size == 4096 else "block of the device")
        axes.set_ylabel("% of blocks used")
        axes.set_xlim(0, blocks)
        axes.set_ylim(0, 100)
        axes.legend(frameon=False, labelcolor=INK, loc="upper right", fontsize=9)

    listed = placed.all
    description = (
        f"The device has {counted(blocks, 'block')}. The image has {len(listed)} of them, from block"
        f" {listed[0]} to block {listed[-1]}; the header of the area is block {image.area.header_block}."
    )
    if len(placed.lost):
        description += f" Of {counted(len(placed.lost), 'block')} the content is lost."
    return _svg(f"{name}-area", "Blocks of the image in its swap area", description, draw)


def order_chart(region: RegionInOrder, end_pfn: int, name: str) -> str:
    """Return the chart of a region and its tables in the order of the copy, from frame 0 up.

    Args:
        region: the region.
        end_pfn: one past the last frame of the machine.
        name: name of the chart in the page.
    """
    from matplotlib.ticker import MultipleLocator

    least = end_pfn / 200

    def draw(axes: Any) -> None:
        axes.set_yticks([0, 1, 2], ["table that is taken", "table with the entry", "region"])
        axes.broken_barh([(0, end_pfn)], (-0.04, 0.08), color=FAINT)
        axes.broken_barh([(0, end_pfn)], (0.96, 0.08), color=FAINT)
        axes.broken_barh([(0, end_pfn)], (1.96, 0.08), color=FAINT)
        axes.broken_barh([(region.start_pfn, max(region.pages, least))], (1.7, 0.6), color=MAIN)
        axes.broken_barh([(region.table_pfn, least)], (0.7, 0.6), color=SECOND)
        if region.lost_pfn is not None:
            axes.broken_barh([(region.lost_pfn, least)], (-0.3, 0.6), color=ALARM)
        if region.first_pfn is not None:
            axes.axvline(region.first_pfn, color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            "", (end_pfn, -0.75), (0, -0.75), arrowprops={"arrowstyle": "->", "color": INK}, annotation_clip=False
        )
        axes.set_xlabel("page frame: the copy begins at 0 and ascends")
        axes.xaxis.set_major_locator(MultipleLocator(1 << max(0, (end_pfn - 1).bit_length() - 3)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{int(value):#x}")
        axes.set_xlim(0, end_pfn)
        axes.set_ylim(-0.9, 2.5)

    parts = [
        f"The region begins at frame {region.start_pfn:#x} ({size_text(4096 * region.pages)}).",
        f"The table with its entry is frame {region.table_pfn:#x}.",
    ]
    if region.first_pfn is not None:
        parts.append(f"The copy meets it at frame {region.first_pfn:#x} (the dashed line).")
    if region.lost_pfn is not None:
        parts.append(f"The table that the entry names is frame {region.lost_pfn:#x}, and lost.")
    return _svg(name, "Region and tables in the order of the copy", " ".join(parts), draw, height=2.0)


def timeline_chart(found: CopyTimeline, words: Mapping[str, str], name: str) -> str:
    """Return the chart of a recorded copy loop: the frames and the calls of each step, in their order.

    Args:
        found: the timeline.
        words: words for the kernel's functions, in the order of the rows.
        name: name of the chart in the page.
    """
    from matplotlib.ticker import MultipleLocator

    steps = found.steps
    bins = min(BINS, len(steps))
    which = np.arange(len(steps)) * bins // max(1, len(steps))
    edges = np.searchsorted(which, np.arange(bins + 1))
    rows = [one for one in words if one in found.trace.counts]
    low = np.array([step.start_pfn or 0 for step in steps], dtype=np.float64)
    high = np.array([step.end_pfn or 0 for step in steps], dtype=np.float64)
    top = max(1.0, float(high.max(initial=0)), *(float(table.pfn) for table in found.tables))
    classes = {calls: [call.split(" ")[0] for call in calls] for calls in {step.calls for step in steps}}
    has = np.array([[row in classes[step.calls] for row in rows] for step in steps])
    failing = np.array([[_fails(step, row) for row in rows] for step in steps])

    def draw(axes: Any) -> None:
        frames, calls = axes
        for at in range(bins):
            part = slice(int(edges[at]), int(edges[at + 1]))
            begin, width = edges[at] + 0.5, edges[at + 1] - edges[at]
            lowest, highest = low[part].min(), max(high[part].max(), low[part].min() + top / 150)
            frames.broken_barh([(begin, width)], (lowest, highest - lowest), color=MAIN)
            for number in np.flatnonzero(has[part].any(axis=0)).tolist():
                colour = ALARM if failing[part, number].any() else MAIN
                calls.broken_barh([(begin + 0.08, width - 0.16)], (number - 0.3, 0.6), color=colour)
        for label, pfns, style, colour in _table_lines(found):
            for number, pfn in enumerate(pfns[:SHOWN_TABLES]):
                frames.axhline(pfn, color=colour, linestyle=style, linewidth=1.2, label="" if number else label)
        frames.set_ylabel("page frame")
        frames.yaxis.set_major_locator(MultipleLocator(1 << max(0, int(top).bit_length() - 2)))
        frames.yaxis.set_major_formatter(lambda value, _: f"{int(value):#x}")
        frames.set_ylim(0, top * 1.04)
        if found.tables:
            frames.legend(frameon=False, labelcolor=INK, loc="upper left", fontsize=9)
        calls.set_yticks(range(len(rows)), [words[row] for row in rows])
        calls.set_ylim(len(rows) - 0.4, -0.6)
        calls.set_xlabel("step, in the order of the calls, not to scale")
        calls.set_xlim(0.5, max(1, len(steps)) + 0.5)
        if len(steps) <= 24:
            calls.set_xticks(range(1, len(steps) + 1))

    told = [f"{words[row]}: in {counted(int(has[:, number].sum()), 'step')}" for number, row in enumerate(rows)]
    lines = [
        f"{label}: {', '.join(f'{pfn:#x}' for pfn in pfns[:SHOWN_TABLES])}" for label, pfns, _, _ in _table_lines(found)
    ]
    description = (
        f"{counted(len(steps), 'step')} of {counted(len(found.trace.calls), 'call')}. Above, the frames of each step;"
        f" below, its calls. {'; '.join(told)}. " + "".join(f"{line}. " for line in lines)
    )
    title = "The recorded copy loop, step by step"
    return _svg(
        name,
        title,
        description.strip(),
        draw,
        height=1.9 + 0.28 * max(1, len(rows)),
        ratios=(1.5, 0.28 * max(2, len(rows))),
    )


def _fails(step: TimelineStep, row: str) -> bool:
    """Return whether a call of a step fails: the crash, an allocation without a page, a change with an error."""
    if row.startswith("set_direct_map"):
        return bool(step.error) and row in step.calls
    return (row if row == "crash" else f"{row} fails") in step.calls


def _table_lines(found: CopyTimeline) -> list[tuple[str, list[int], str, str]]:
    """Return the page tables of a loop that a chart marks: label, frames, style of the line, colour."""
    changed = [table.pfn for table in found.tables if table.allocated_by is None]
    new = [table.pfn for table in found.tables if table.allocated_by is not None]
    both = [("table that is changed", changed, "--", SECOND), ("table that is taken", new, ":", ALARM)]
    return [one for one in both if one[1]]


def memory_chart(frames: FrameMap, layer: FrameLayer) -> str:
    """Return the picture of a map of memory, a square for some frames each, in colours of its own.

    Args:
        frames: the map.
        layer: question that its colours answer.
    """
    from matplotlib.colors import to_rgb

    codes = {"mapped": frames.mapped, "fate": frames.fate, "use": frames.use}[layer.key]
    each = 1
    while frames.end_pfn > each * MAP_COLUMNS * MAP_ROWS:
        each *= 2
    cells = cells_of_frames(frames.start_pfn, codes, frames.end_pfn, alarming_codes(layer.words), each)
    rows = -(-len(cells) // MAP_COLUMNS)
    colours = page_colours()
    pixels = np.ones((rows * MAP_COLUMNS, 3))
    for code, word in layer.words.items():
        pixels[: len(cells)][cells == code] = to_rgb(colours[word.key])

    def draw(axes: Any) -> None:
        axes.imshow(pixels.reshape(rows, MAP_COLUMNS, 3), interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        shown = range(0, rows, max(1, rows // 8))
        axes.set_yticks(list(shown), [f"{row * MAP_COLUMNS * each:#x}" for row in shown])
        axes.spines[:].set_visible(False)

    totals = frames.totals(codes)
    told = ", ".join(f"{layer.words[code].label}: {pages}" for code, pages in totals.items())
    description = f"{frames.end_pfn} frames, {counted(each, 'frame')} a square, row by row. Frames {told}."
    svg = _svg(f"memory-{layer.key}", layer.title, description, draw, height=max(1.0, 2.6 * rows / MAP_ROWS))
    legend = "".join(
        f'<span style="display:inline-block;margin-right:1em"><span style="background:{colours[layer.words[code].key]};'
        f'display:inline-block;width:0.8em;height:0.8em;border:1px solid"></span>'
        f" {html.escape(layer.words[code].label)}</span>"
        for code in totals
    )
    return f'<div style="{FALLBACKS}">{svg}<p>{legend}</p></div>'


def _svg(
    name: str,
    title: str,
    description: str,
    draw: Callable[[Any], None],
    height: float = 2.4,
    ratios: Sequence[float] = (),
) -> str:
    """Return a chart as an SVG element.

    Args:
        name: prefix of the identifiers in it, unique in its page.
        title: its title.
        description: all that it shows, in words.
        draw: draws it on axes of matplotlib.
        height: height in inches; the width is 8.
        ratios: heights of several axes, one below the other, which `draw` gets in place of the only one.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    settings: dict[Any, Any] = {**colours, "svg.fonttype": "none", "svg.hashsalt": "hibernaut", "font.size": 10}
    with mpl.rc_context({**mpl.rcParamsDefault, **settings, "backend": "svg"}):
        figure = Figure(figsize=(8, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots(max(1, len(ratios)), sharex=True, height_ratios=ratios or None)
        for one in figure.axes:
            one.patch.set_visible(False)
            one.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), name, title, description)


def page_colours() -> dict[str, str]:
    """Return the colour of each class of frames in the light style of pages, by its key: `#rrggbb`."""
    style = (resources.files("hibernaut.report") / "templates" / "report.css").read_text()
    variables: dict[str, str] = {}
    for name, value in re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", style):
        variables.setdefault(name, value)
    found = {}
    for selectors, name in re.findall(r"((?:\.c-[a-z0-9-]+,? ?)+)\{ --c: var\(--([a-z0-9-]+)\); \}", style):
        found.update(dict.fromkeys(re.findall(r"\.c-([a-z0-9-]+)", selectors), variables[name]))
    return found


def _inline(text: str, name: str, title: str, description: str) -> str:
    """Return the SVG element of a file of matplotlib, with its identifiers and colours made those of the page."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    labels = f"{name}-title {name}-desc"
    return (
        f'{head} role="img" aria-labelledby="{labels}"><title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>{rest}'
    )
