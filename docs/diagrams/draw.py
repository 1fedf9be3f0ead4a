# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw the diagrams of the explanation: `python docs/diagrams/draw.py` writes the SVG files beside this one.

The frames in them are those of a run: the demonstration's machine is built and hibernated, and each diagram shows
what its tables, its snapshot and its allocator say. A test draws them again and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from hibernaut import Fixmap, Remap, audit, build_machine, demo_layout, hibernate, run_matrix

FOLDER = Path(__file__).resolve().parent
WIDTH = 460
LEFT, RIGHT = 10, 450
BAR_HEIGHT = 34

STYLE = """
svg.diagram{font-family:system-ui,-apple-system,"Segoe UI",sans-serif;font-size:14px;
--ink:#1c1e21;--dim:#5a6068;--page:#dfe5ec;--table:#f2c14e;--new:#ec9a82;--good:#2f7d4f;--bad:#b3261e}
@media (prefers-color-scheme:dark){svg.diagram{
--ink:#e3e6ea;--dim:#a3aab3;--page:#343b44;--table:#7a5d12;--new:#8a412d;--good:#6fcf97;--bad:#ff8a80}}
svg.diagram text{fill:var(--ink)}
svg.diagram .dim{fill:var(--dim);font-size:13px}
svg.diagram .head{font-weight:600;font-size:15px}
svg.diagram .in{font-size:12px}
svg.diagram .good{fill:var(--good);font-weight:600}
svg.diagram .bad{fill:var(--bad);font-weight:600}
svg.diagram .page{fill:var(--page);stroke:var(--ink)}
svg.diagram .hole{fill:none;stroke:var(--ink);stroke-dasharray:4 3}
svg.diagram .table{fill:var(--table);stroke:var(--ink)}
svg.diagram .new{fill:var(--new);stroke:var(--ink)}
svg.diagram .missing{fill:none;stroke:var(--bad);stroke-dasharray:2 2}
svg.diagram .line{fill:none;stroke:var(--ink);stroke-width:1.5}
svg.diagram .badline{fill:none;stroke:var(--bad);stroke-width:1.5}
svg.diagram .cursor{stroke:var(--good);stroke-width:3}
"""


@dataclass
class Drawing:
    """An SVG that grows from top to bottom.

    Attributes:
        name: of its file, and what its ids begin with.
        title: in few words.
        description: the content of the picture in words, for screen readers.
    """

    name: str
    title: str
    description: str
    parts: list[str] = field(default_factory=list)
    y: float = 0

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Write one line."""
        chosen = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{chosen}>{escape(words)}</text>')

    def lines(self, *words: str, kind: str = "") -> None:
        """Write lines below everything so far."""
        for line in words:
            self.y += 19
            self.text(LEFT, self.y, line, kind)

    def box(self, x: float, width: float, kind: str, *words: str, y: float, height: float = BAR_HEIGHT) -> None:
        """Draw a box with its label in it."""
        self.parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>')
        top = y + height / 2 + 5 - 7 * (len(words) - 1)
        for at, line in enumerate(words):
            self.text(x + width / 2, top + 14 * at, line, "in", "middle")

    def arc(self, start: float, end: float, y: float, depth: float, kind: str = "line") -> None:
        """Draw an arrow below a bar from one place to another."""
        low = y + depth
        head = "bad" if kind == "badline" else "ink"
        self.parts.append(
            f'<path class="{kind}" d="M{start:g} {y:g} C{start:g} {low:g} {end:g} {low:g} {end:g} {y + 3:g}"'
            f' marker-end="url(#{self.name}-{head})"/>'
        )

    def down(self, x: float, y: float, length: float) -> None:
        """Draw a short arrow down."""
        self.parts.append(f'<path class="line" d="M{x:g} {y:g}V{y + length:g}" marker-end="url(#{self.name}-ink)"/>')

    def cursor(self, x: float, y: float, height: float) -> None:
        """Draw how far the copy has come."""
        self.parts.append(f'<line class="cursor" x1="{x:g}" x2="{x:g}" y1="{y:g}" y2="{y + height:g}"/>')

    def svg(self) -> str:
        """Return the file's text."""
        heads = "".join(
            f'<marker id="{self.name}-{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="var(--{name})"/></marker>'
            for name in ("ink", "bad")
        )
        height = self.y + 12
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="diagram" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-desc">\n'
            f'<title id="{self.name}-title">{escape(self.title)}</title>\n'
            f'<desc id="{self.name}-desc">{escape(self.description)}</desc>\n'
            f"<style>{STYLE}</style>\n<defs>{heads}</defs>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )


@dataclass(frozen=True)
class Torn:
    """Facts of a run of today's copy on the demonstration's machine.

    Attributes:
        block: first frame of the 2 MiB that are not present.
        table: frame of the PMD table that maps them.
        new: frame of the table that the split made.
        after_split: whether the PMD table is copied after the split.
        new_is_saved: whether the new table's page is among those saved.
        names_new: whether the copy of the PMD table names the new table.
    """

    block: int
    table: int
    new: int
    after_split: bool
    new_is_saved: bool
    names_new: bool


def torn(tables: str) -> Torn:
    """Hibernate the demonstration's machine by today's copy, its page tables above ("high") or below the block."""
    machine = build_machine(demo_layout(tables=tables))
    (split,) = audit(machine).splits
    snapshot = hibernate(machine, Remap())
    (allocation,) = snapshot.allocations
    assert allocation.pfn is not None
    entries = snapshot.page(split.table_pfn).view("<u8")
    named = int(entries[split.start_pfn // 512 % 512]) & 0x000F_FFFF_FFFF_F000
    return Torn(
        split.start_pfn,
        split.table_pfn,
        allocation.pfn,
        split.order == "above",
        allocation.pfn in snapshot.pfns,
        named == allocation.pfn << 12,
    )


BLOCK_X, BLOCK_WIDTH = 130, 74
TABLE_WIDTH, NEW_WIDTH = 76, 66


def table_above() -> Drawing:
    """Draw the failure: the table that maps the block is copied after the split."""
    run = torn("high")
    assert (run.after_split, run.names_new, run.new_is_saved) == (True, True, False)
    assert run.block < run.table < run.new
    drawing = Drawing(
        "table-above",
        "The page table above the block: the image names a page that it does not contain",
        f"Memory in ascending order of frames, copied from left to right. The block at frame {run.block:#x} is not "
        f"present, its PMD table lies above it at frame {run.table:#x}. When the copy reaches the block it splits the "
        f"entry: the new table takes frame {run.new:#x}, which was free and is not on the list of pages to save. The "
        "PMD table is copied after that, so its copy names the new table, and the image has no such page.",
    )
    table_x, new_x = 250, RIGHT - NEW_WIDTH
    centre = BLOCK_X + BLOCK_WIDTH / 2, table_x + TABLE_WIDTH / 2, new_x + NEW_WIDTH / 2

    def memory(split: bool) -> None:
        y = drawing.y + 8
        drawing.box(LEFT, BLOCK_X - LEFT, "page", y=y)
        drawing.box(BLOCK_X, BLOCK_WIDTH, "hole", "block", f"{run.block:#x}", y=y)
        drawing.box(BLOCK_X + BLOCK_WIDTH, table_x - BLOCK_X - BLOCK_WIDTH, "page", y=y)
        drawing.box(table_x, TABLE_WIDTH, "table", "PMD table", f"{run.table:#x}", y=y)
        drawing.box(table_x + TABLE_WIDTH, new_x - table_x - TABLE_WIDTH, "page", y=y)
        drawing.box(new_x, NEW_WIDTH, *(("new", "PTE table") if split else ("hole", "free")), f"{run.new:#x}", y=y)
        below = y + BAR_HEIGHT
        if split:
            drawing.arc(centre[1], centre[2], below, 24)
            drawing.arc(centre[2] - 8, centre[0], below, 40)
        else:
            drawing.arc(centre[1], centre[0], below, 28)
        drawing.y = below + 38

    drawing.lines("1  The list of pages is fixed; the copy begins", kind="head")
    memory(split=False)
    drawing.cursor(LEFT, drawing.y - 38 - BAR_HEIGHT - 4, BAR_HEIGHT + 8)
    drawing.lines("One PMD entry covers the block. It is not present.", kind="dim")
    drawing.y += 10
    drawing.lines("2  The copy reaches the block and splits the entry", kind="head")
    memory(split=True)
    drawing.cursor(BLOCK_X, drawing.y - 38 - BAR_HEIGHT - 4, BAR_HEIGHT + 8)
    drawing.lines("The new table takes a free page. It is not on the list.", kind="dim")
    drawing.y += 10
    drawing.lines("3  The PMD table is copied, as it is now: the image", kind="head")
    y = drawing.y + 8
    drawing.box(LEFT, BLOCK_X - LEFT, "page", y=y)
    drawing.box(BLOCK_X, BLOCK_WIDTH, "page", "block", "saved", y=y)
    drawing.box(BLOCK_X + BLOCK_WIDTH, table_x - BLOCK_X - BLOCK_WIDTH, "page", y=y)
    drawing.box(table_x, TABLE_WIDTH, "table", "PMD table", f"{run.table:#x}", y=y)
    drawing.box(table_x + TABLE_WIDTH, new_x - table_x - TABLE_WIDTH, "page", y=y)
    drawing.box(new_x, NEW_WIDTH, "missing", "not saved", f"{run.new:#x}", y=y)
    drawing.arc(centre[1], centre[2], y + BAR_HEIGHT, 24, "badline")
    drawing.y = y + BAR_HEIGHT + 22
    drawing.lines("The resumed CPU takes for its page table what", "the boot kernel left in that frame.", kind="bad")
    return drawing


def table_below() -> Drawing:
    """Draw the same machine with its tables below the block."""
    run = torn("low")
    assert (run.after_split, run.names_new, run.new_is_saved) == (False, False, False)
    drawing = Drawing(
        "table-below",
        "The page table below the block: the image is consistent",
        f"The same machine, but the PMD table lies below the block, at frame {run.table:#x}. It is copied before the "
        f"copy reaches the block at frame {run.block:#x} and splits the entry, so the image has the entry as it was. "
        f"The new table's page, frame {run.new:#x}, is in use by its struct page and is not in the image: it leaks.",
    )
    assert run.table < run.new < run.block
    table_x, new_x, block_x = 50, 176, 310
    centre = block_x + BLOCK_WIDTH / 2, table_x + TABLE_WIDTH / 2
    drawing.lines("The PMD table is copied before the split: the image", kind="head")
    y = drawing.y + 8
    drawing.box(LEFT, table_x - LEFT, "page", y=y)
    drawing.box(table_x, TABLE_WIDTH, "table", "PMD table", f"{run.table:#x}", y=y)
    drawing.box(table_x + TABLE_WIDTH, new_x - table_x - TABLE_WIDTH, "page", y=y)
    drawing.box(new_x, NEW_WIDTH, "missing", "not saved", f"{run.new:#x}", y=y)
    drawing.box(new_x + NEW_WIDTH, block_x - new_x - NEW_WIDTH, "page", y=y)
    drawing.box(block_x, BLOCK_WIDTH, "page", "block", f"{run.block:#x}", y=y)
    drawing.box(block_x + BLOCK_WIDTH, RIGHT - block_x - BLOCK_WIDTH, "page", y=y)
    drawing.arc(centre[1], centre[0], y + BAR_HEIGHT, 36)
    drawing.y = y + BAR_HEIGHT + 36
    drawing.lines("The saved entry is the large one: the map is as it was.", kind="good")
    drawing.lines("The page of the new table is lost until the next boot.", kind="dim")
    return drawing


def free_lists() -> Drawing:
    """Draw what an allocation in the middle of the copy does to the allocator's own pages."""
    (cell,) = (one for one in run_matrix(["remap"]) if one.situation.name == "2M hole, mem_map below")
    assert cell.failed_checks == ("allocator-sound",)
    drawing = Drawing(
        "free-lists",
        "An allocation in the middle of the copy tears the free lists",
        "Memory in ascending order of frames. The array of struct page lies below the block and is copied before the "
        "split allocates a page; the heads of the free lists lie above and are copied after it. The image has the "
        "struct pages from before the allocation and the list heads from after it. No page table is lost, and the "
        "resumed kernel crashes when it follows a link of the list.",
    )
    map_x, map_width, head_x, head_width, block_x = 40, 100, 320, 90, 196
    drawing.lines("struct page below, list heads above: the image", kind="head")
    y = drawing.y + 8
    drawing.box(LEFT, map_x - LEFT, "page", y=y)
    drawing.box(map_x, map_width, "table", "struct page", "before", y=y)
    drawing.box(map_x + map_width, block_x - map_x - map_width, "page", y=y)
    drawing.box(block_x, BLOCK_WIDTH, "page", "block", "split here", y=y)
    drawing.box(block_x + BLOCK_WIDTH, head_x - block_x - BLOCK_WIDTH, "page", y=y)
    drawing.box(head_x, head_width, "new", "list heads", "after", y=y)
    drawing.box(head_x + head_width, RIGHT - head_x - head_width, "page", y=y)
    drawing.arc(head_x + head_width / 2, map_x + map_width / 2, y + BAR_HEIGHT, 40, "badline")
    drawing.y = y + BAR_HEIGHT + 38
    drawing.lines(
        "The saved head names a struct page whose saved links",
        "are older. Every page table is in the image.",
        kind="bad",
    )
    return drawing


def slot() -> Drawing:
    """Draw the copy through a fixmap slot."""
    machine = build_machine(demo_layout())
    snapshot = hibernate(machine, Fixmap())
    assert snapshot.allocations == ()
    drawing = Drawing(
        "fixmap",
        "Through a fixmap slot: nothing but the slot changes",
        "The fixmap's page tables exist from boot. To copy a page that is not present, one entry of them, the slot, is "
        "set to the page's frame, the page is read through the slot's address, and the entry is cleared again. The "
        "direct map is not touched, and nothing is allocated.",
    )
    slot_x, slot_width = 300, 110
    drawing.lines("For each page that is not present", kind="head")
    y = drawing.y + 8
    drawing.box(LEFT, BLOCK_X - LEFT, "page", y=y)
    drawing.box(BLOCK_X, BLOCK_WIDTH, "hole", "block", "0x1000", y=y)
    drawing.box(BLOCK_X + BLOCK_WIDTH, slot_x - BLOCK_X - BLOCK_WIDTH, "page", y=y)
    drawing.box(slot_x, slot_width, "table", "fixmap table", "from boot", y=y)
    drawing.box(slot_x + slot_width, RIGHT - slot_x - slot_width, "page", y=y)
    drawing.arc(slot_x + slot_width / 2, BLOCK_X + BLOCK_WIDTH / 2, y + BAR_HEIGHT, 36)
    drawing.y = y + BAR_HEIGHT + 36
    drawing.lines("set the slot, invalidate, copy, clear the slot, invalidate")
    drawing.lines("No allocation, no split, the direct map is as it was.", kind="good")
    return drawing


FLOW = (
    ("volumes", "bytes by position, whatever holds them"),
    ("memory, swsusp", "page frames of a dump or an image"),
    ("paging", "entries, walks, the whole-table scan"),
    ("linux", "direct map, splits, allocator: the machine"),
    ("hibernation", "snapshot, resumed machine, checks"),
    ("exploration", "every run, the shortest bad one"),
    ("studies, lab", "what was learned, on the model and for real"),
    ("report, mount, volatility, cli", "results for people and programs"),
)


def house() -> Drawing:
    """Draw how data flows through the rooms."""
    drawing = Drawing(
        "house",
        "How data flows through the rooms",
        "From top to bottom: " + "; ".join(f"{rooms}: {what}" for rooms, what in FLOW) + ". No room reaches back.",
    )
    box_width = 120
    for number, (rooms, what) in enumerate(FLOW):
        y = drawing.y + 8
        drawing.box(LEFT, box_width, "page", rooms, y=y)
        drawing.text(LEFT + box_width + 14, y + 22, what)
        drawing.y = y + BAR_HEIGHT
        if number < len(FLOW) - 1:
            drawing.down(LEFT + box_width / 2, drawing.y, 13)
            drawing.y += 10
    return drawing


def main() -> None:
    """Write all diagrams."""
    for drawing in drawings():
        (FOLDER / f"{drawing.name}.svg").write_text(drawing.svg())


def drawings() -> list[Drawing]:
    """Return all diagrams."""
    return [table_above(), table_below(), free_lists(), slot(), house()]


if __name__ == "__main__":
    main()
