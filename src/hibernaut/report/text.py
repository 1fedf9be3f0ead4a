# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.hibernation.invariants import INVARIANTS
from hibernaut.report.documents import (
    AuditDocument,
    CellDocument,
    DemoDocument,
    DepletionDocument,
    DoctorDocument,
    ExplainDocument,
    InspectDocument,
    MapDocument,
    NotPresentDocument,
    ProveDocument,
    RewriteDocument,
    UswsuspDocument,
    VerdictDocument,
    WalkDocument,
)
from hibernaut.swsusp.architecture import X86_64
from hibernaut.swsusp.declarations import ARCH_MAGIC
from hibernaut.swsusp.generations import GENERATIONS

__all__ = [
    "CHECK_LETTERS",
    "LETTER_WORDS",
    "audit_text",
    "cell_text",
    "columns",
    "counted",
    "crashed_text",
    "demo_text",
    "doctor_text",
    "explain_text",
    "hex_or_none",
    "inspection_text",
    "map_text",
    "markdown",
    "of_another_architecture",
    "rewritten_text",
    "size_text",
    "support_text",
    "walk_text",
]

SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size_text(size_bytes: int) -> str:
    """Return a size with its unit: 15.9 MiB."""
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(SIZES) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {SIZES[unit]}" if unit == 0 or size == int(size) else f"{size:.1f} {SIZES[unit]}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 page", "2 pages"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def hex_or_none(value: int | None) -> str | None:
    """Return an address as documents have it, 0x1000; None for None."""
    return None if value is None else f"{value:#x}"


def columns(rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset(), gap: str = "  ") -> list[str]:
    """Return rows as lines of aligned columns; the columns whose number is in `right` are aligned to the right."""
    table = [list(row) for row in rows]
    if not table:
        return []
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        gap.join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def of_another_architecture(document: InspectDocument) -> bool:
    """Return whether an image is one of another architecture, which has no verdict here."""
    return document["architecture"] not in (None, X86_64.name)


def _state(document: InspectDocument) -> str:
    """Return the last word on an image. One of another architecture is not called damaged: its page may be at fault."""
    if of_another_architecture(document):
        whole = "its data do not agree with it" if document["problems"] else "its data are whole"
        return f"not an x86-64 image: its info page is that of {document['kernel']}; {whole}"
    damaged = "image is damaged: --salvage shows how much of it can be read"
    return damaged if document["problems"] else "image is intact"


def inspection_text(document: InspectDocument, machine: str | None = None) -> str:
    """Return the text of the document of `inspect`; that of its machine, if given, before the verdict."""

    def known(value: object) -> str:
        return "?" if value is None else str(value)

    crc = document["crc32"]
    if crc["stored"] is None:
        crc_text = "none stored"
    elif crc["ok"] is None:
        crc_text = f"{crc['stored']} stored, could not be computed"
    else:
        crc_text = f"{crc['stored']} " + ("ok" if crc["ok"] else f"WRONG: the data gives {crc['computed']}")
    stored, page_bytes = document["stored_pages"], document["page_bytes"]
    userland = document.get("uswsusp")
    rows = [
        *([("written by", "suspend-utils (uswsusp)")] if userland else []),
        *_machine_rows(document),
        ("compressor", f"{document['compressor']} (flags {document['flags']})"),
        (
            "pages saved",
            f"{known(document['saved_pages'])}, {known(document['zero_pages'])} of them zero and not stored",
        ),
        ("pages stored", known(stored) + (f" ({size_text(stored * page_bytes)})" if stored is not None else "")),
        ("physical pages", known(document["physical_pages"])),
        ("compressed", _compressed(document)),
        (
            "extents" if userland else "swap map",
            f"{known(document['map_pages'])} pages, the first at block {document['first_map_block']}",
        ),
        ("MD5", _md5(userland)) if userland else ("CRC32", crc_text),
        *_record_rows(document),
        *((name, document[name]) for name in ("sha256_pfns", "sha256_stored_pages") if name in document),
    ]
    lines = columns(rows)
    lines += [f"REMARK  {remark}" for remark in document["remarks"]]
    for problem in document["problems"]:
        place = f"{problem['where']}: " if problem["where"] else ""
        lines.append(f"PROBLEM  {place}{problem['what']}")
    lines.append(_state(document))
    if machine is not None:
        lines += ["", machine]
    if "verdict" in document:
        lines += ["", *_verdict_lines(document["verdict"])]
    return "\n".join(lines)


def _machine_rows(document: InspectDocument) -> list[tuple[str, str]]:
    """Return the kernel and the size of pages where they are not those of every x86-64 machine."""
    rows = [("kernel", document["kernel"])] if document["kernel"] else []
    return rows + ([("page size", f"{document['page_bytes']} bytes")] if document["page_bytes"] != 4096 else [])


def _record_rows(document: InspectDocument) -> list[tuple[str, str]]:
    """Return the architecture's own fields of the info page."""
    if document["kernel"]:
        rows = [(field["name"], field["value"]) for field in document["record"]]
        return rows + _e820_rows(document)
    return [
        ("CR3", document["cr3"] or "?"),
        ("jump address", (document["jump_address"] or "?") + _physical(document)),
        *_generation_rows(document),
    ]


def _physical(document: InspectDocument) -> str:
    """Return the physical restore entry in brackets; nothing for a generation that does not store it."""
    if document["jump_address_phys"] is None and document["jump_address"] is not None:
        return ""
    return f" (physical {document['jump_address_phys'] or '?'})"


def _generation_rows(document: InspectDocument) -> list[tuple[str, str]]:
    """Return what depends on the generation of the info page; its magic if it is not the one of most kernels."""
    magic = document["magic"]
    if magic is None or int(magic, 16) == ARCH_MAGIC:
        return [("e820 checksum", document["e820_checksum"] or "?")]
    generation = GENERATIONS.get(int(magic, 16))
    rows = [("info page", f"magic {magic}" + (f", of kernels {generation.kernels}" if generation else ""))]
    return rows + _e820_rows(document)


def _e820_rows(document: InspectDocument) -> list[tuple[str, str]]:
    """Return the checksum of the memory map, if the info page has one."""
    md5, crc32 = document["e820_md5"], document["e820_checksum"]
    if md5 is not None:
        return [("e820 MD5", md5 or "none: the kernel was built without MD5")]
    return [] if crc32 is None else [("e820 checksum", crc32)]


def _verdict_lines(verdict: VerdictDocument) -> list[str]:
    """Return a line for each check of a resuming kernel: answer, message of the kernel, reason."""
    rows = []
    for check in verdict["checks"]:
        message = f'"{check["message"]}"' if check["message"] else ""
        rows.append((check["check"], check["answer"], "; ".join(filter(None, (message, check["remark"])))))
    ends = {
        True: "this kernel would resume from it",
        False: "this kernel would not resume from it",
        None: "whether this kernel would resume from it is not known",
    }
    return [f"kernel {verdict['kernel']} on {verdict['machine']}:", *columns(rows), ends[verdict["resumes"]]]


def _compressed(document: InspectDocument) -> str:
    if document["compressor"] == "none":
        return "no"
    if document["units"] is None or document["compressed_bytes"] is None:
        return "?"
    pages = document["uswsusp"]["buffer_pages"] if "uswsusp" in document else None
    of_pages = "" if pages is None else f" of {counted(pages, 'page')}"
    return f"{size_text(document['compressed_bytes'])} in {document['units']} units{of_pages}"


def _md5(document: UswsuspDocument) -> str:
    """Return the MD5 of an image of suspend-utils, and whether it is right."""
    stored, ending = document["md5_stored"], document["md5_ending"]
    if stored is None:
        return "none stored"
    if document["md5_ok"] is None:
        return f"{stored} stored, could not be computed"
    if ending is None:
        return f"{stored} WRONG: the data gives {document['md5_computed']}"
    ends = {"rfc 1321": "", "count of zero": ", with a count of zero", "no last block": ", without a last block"}
    return f"{stored} ok{ends[ending]}"


def rewritten_text(name: str, document: RewriteDocument) -> str:
    """Return the text of the document of `rewrite`."""
    compressed = "not compressed" if document["compressor"] == "none" else document["compressor"]
    line = (
        f"{name}: {counted(document['saved_pages'], 'page')} saved, {document['stored_pages']} stored, {compressed}"
        f" ({size_text(document['blocks'] * 4096)} in the swap area)"
    )
    changed = sum(write["bytes"] for write in document["writes"])
    return line + (f", {counted(changed, 'byte')} of memory written" if document["writes"] else "")


def map_text(document: MapDocument) -> str:
    """Return the text of the document of `map`."""
    present = document["present_bytes"]
    lines = columns(
        [
            *([("gaps", _gaps_text(document))] if document["gaps"] else []),
            ("page tables", f"{document['levels']} levels, CR3 {document['cr3']}"),
            ("direct map", f"from {document['base']}, frames 0 to {document['end_pfn']} (exclusive)"),
            (
                "present",
                ", ".join(f"{size_text(present[size])} by {size}" for size in ("4K", "2M", "1G") if present[size]),
            ),
        ]
    )
    holes = document["holes"]
    if holes:
        more = document["more_holes"]
        rest = f", of which the first {len(holes)} follow" if more else ""
        lines.append(f"{counted(len(holes) + more, 'hole')}{rest}:")
        head = ("first frame", "pages", "level", "kind", "first entry", "in source")
        body = [
            (
                hole["start_pfn"],
                str(hole["pages"]),
                hole["level"],
                hole["kind"] + (", plain" if hole["plain"] else ""),
                hole["entry"],
                "yes" if hole["in_source"] else "no",
            )
            for hole in holes
        ]
        lines += ["  " + line for line in columns([head, *body], right=frozenset({0, 1, 4}))]
    else:
        lines.append("no holes")
    for wrong in document["mismatches"]:
        lines.append(
            f"WRONG FRAME: entry {wrong['entry']} ({wrong['level']}) stands for frame {wrong['start_pfn']} "
            f"but points to {wrong['found_pfn']}, {counted(wrong['pages'], 'page')}"
        )
    if document["more_mismatches"]:
        lines.append(f"WRONG FRAME: {document['more_mismatches']} more of such ranges")
    return "\n".join(lines)


def _gaps_text(document: MapDocument | AuditDocument) -> str:
    gaps = ", ".join(f"{gap['start']}+{gap['size_bytes']:#x}" for gap in document["gaps"])
    return f"{gaps}, which the file leaves out, by {document['gaps_from']}"


def walk_text(document: WalkDocument) -> str:
    """Return the text of the document of `walk`."""
    head = ("level", "table frame", "index", "entry", "flags")
    body = [
        (step["level"], step["table_pfn"], str(step["index"]), step["entry"], " ".join(step["flags"]))
        for step in document["levels"]
    ]
    lines = columns([head, *body], right=frozenset({1, 2, 3}))
    lines.append(f"{document['vaddr']}: {document['stop']}")
    if document["not_present"] is not None:
        lines[-1] += f", {_meaning(document['not_present'])}"
    if document["paddr"] is not None:
        rights = [name for name in ("rw", "nx", "user") if document["effective"][name]]
        lines[-1] += f", physical {document['paddr']}, frame {document['pfn']}" + (
            f" ({' '.join(rights)})" if rights else ""
        )
    return "\n".join(lines)


def _meaning(entry: NotPresentDocument) -> str:
    """Return the meaning of a not-present entry in words; readings between which nothing decides are all named."""
    frames = " or ".join(
        f"frame {one['pfn']} ({'stored inverted' if one['inverted'] else 'stored plain, not inverted'})"
        for one in entry["frames"]
    )
    slots = " or ".join(f"swap area {one['area']}, slot {one['slot']}" for one in entry["slots"])
    if entry["kind"] == "protnone":
        return f"PROTNONE: {frames}"
    if entry["kind"] == "not-a-slot":
        types = " or ".join(f"type {one['area']}" for one in entry["slots"])
        return (
            f"not a swap slot: {types} is a migration, hwpoison, device or marker entry (in fewer than 24 swap areas)"
        )
    if entry["kind"] == "swap" and not entry["slots"][0]["inverted"]:
        return f"{slots} (stored plain, as before 4.19)"
    return frames or slots or "no entry that a kernel writes there"


def crashed_text(error: MachineFault | HibernationRefused, log: Sequence[str]) -> str:
    """Return the log of a modelled kernel that crashed or refused to hibernate, and the reason in one line."""
    last = f"crashed: {error}" if isinstance(error, MachineFault) else str(error)
    return "\n".join([*log, last, "nothing was written"])


LETTER_WORDS = {
    "D": "pages with wrong bytes",
    "T": "a page table that was not saved",
    "M": "a changed direct map",
    "A": "torn lists of the allocator, or a leaked page",
    "S": "a slot that is left mapped",
    "X": "a stale translation",
}
CHECK_LETTERS = {name: invariant.letter for name, invariant in INVARIANTS.items() if invariant.letter}
"""The letters of invariants in the table of `demo`."""


def demo_text(document: DemoDocument) -> str:
    """Return the table of ways and situations, the meaning of its letters, the log of a crash, and the image."""
    situations, ways, image = document["situations"], document["ways"], document["image"]
    cells = {(cell["way"], cell["situation"]): cell for cell in document["cells"]}
    numbers = [str(number) for number in range(1, len(situations) + 1)]
    body = [[way, *(cell_text(cells[way, one["name"]]) for one in situations)] for way in ways]
    lines = columns([["way", *numbers], *body])
    lines += ["", "situations"]
    lines += columns(
        [[f"  {number}", one["name"], one["what"]] for number, one in zip(numbers, situations, strict=True)]
    )
    lines += [
        "",
        "ok: saved, resumed machine unchanged; crashed; refused: not saved, the machine continues; else saved, with",
        *("  ".join(f"{letter} {LETTER_WORDS[letter]}" for letter in letters) for letters in ("DTM", "ASX")),
    ]
    crash = document["last_words"]
    lines += [
        "",
        f"{crash['way']}, {crash['situation']}: log of the crash",
        *(f"  {line}" for line in crash["log"]),
    ]
    verdict = "all unchanged" if not image["wrong_pages"] else f"{image['wrong_pages']} of them WRONG"
    lines += [
        "",
        f"an image by Fixmap, written and read back: {image['pages']} pages, {verdict}, CRC {image['crc32']}",
    ]
    return "\n".join(lines)


def cell_text(cell: CellDocument) -> str:
    """Return the outcome of a cell, or the letters of its failed checks."""
    if cell["outcome"] != "saved":
        return "crashed" if cell["outcome"] == "died" else cell["outcome"]
    return "".join(CHECK_LETTERS[name] for name in cell["failed_checks"]) or "ok"


def audit_text(document: AuditDocument) -> str:
    """Return the text of the document of `audit`."""
    lines = [
        *([f"gaps         {_gaps_text(document)}"] if document["gaps"] else []),
        f"kernel       rules of {document['rules']}",
        f"saveable     {counted(document['saveable_pages'], 'page')}",
    ]
    if document["refused"]:
        lines.append(f"REFUSED      the kernel does not hibernate: {document['refused']}")
    head = ("pages", "direct map has", "first frames", "today", "through a fixmap slot")
    body = [
        (
            str(row["pages"]),
            row["name"],
            ", ".join(f"{run['start_pfn']}+{run['pages']}" for run in row["first"]) + (" ..." if row["more"] else ""),
            ("! " if row["today_bad"] else "") + row["today"],
            ("! " if row["fixmap_bad"] else "") + row["fixmap"],
        )
        for row in document["classes"]
    ]
    lines += ["", *columns([head, *body], right=frozenset({0}))]
    if document["splits"]:
        lines += ["", f"{counted(document['allocations'], 'page')} for tables would be allocated during the copy:"]
        rows = [("first frame", "entry", "to save", "its table", "table is copied", "allocations")]
        words = {
            "below": "before the split: consistent",
            "above": "after the split: torn",
            "not listed": "never: not on the list",
        }
        rows += [
            (
                split["start_pfn"],
                split["level"],
                str(split["pages"]),
                split["table_pfn"],
                words[split["order"]],
                str(split["allocations"]),
            )
            for split in document["splits"]
        ]
        lines += ["  " + line for line in columns(rows)]
        if document["more_splits"]:
            lines.append(f"  ... and {document['more_splits']} more")
    if document["depletion"]:
        lines += ["", *_depletion_lines(document["depletion"])]
    lines.append("")
    for name, safe in (("today", document["safe_today"]), ("through a fixmap slot", document["safe_by_fixmap"])):
        lines.append(f"{name}: " + ("every page is saved" if safe else "not every page is certain to be saved"))
    return "\n".join(lines)


def _depletion_lines(found: DepletionDocument) -> list[str]:
    """Return the sentences on the splits that find a page."""
    when = "at the copy" if found["when"] == "copy" else "if it hibernates now"
    drivers = f", with {counted(found['drivers_pages'], 'page')} for drivers" if found["drivers_pages"] else ""
    lines = [
        f"pages for tables, {when}{drivers}: {depletion_span(found)} of {counted(found['free_pages'], 'free page')}, "
        f"of which the zones keep {found['kept_pages']}",
    ]
    if found["floor_pages"] is not None:
        floor = counted(max(0, found["floor_pages"]), "page")
        lines.append(f"  whatever is in memory, the kernel's reserves leave {floor} above the marks")
    cached = counted(found["cached_pages"], "page") + " of files"
    lines.append(f"  a split beyond that reclaims memory in the copy ({cached}), or its allocation fails")
    enough = {True: "enough", False: "not enough", None: "perhaps not enough"}[found["suffices"]]
    return [*lines, f"  {enough} for the splits of this machine"]


def depletion_span(found: DepletionDocument) -> str:
    """Return the numbers of splits that find a page: "42 to 46"."""
    return str(found["least"]) if found["least"] == found["most"] else f"{found['least']} to {found['most']}"


def explain_text(document: ExplainDocument) -> str:
    """Return the text of the document of `explain`."""
    lines = [f'"{document["question"]}"', ""]
    lines += ["Both, and more. Every branch, run on a simulated machine by the rules of " + document["rules"] + ":"]
    for number, branch in enumerate(document["branches"], 1):
        lines += ["", f"{number}. {branch['title']}"]
        lines += [f"   - {step}" for step in branch["path"]]
        for name, run in (("today", branch["today"]), ("fixmap", branch["fixmap"])):
            what = {"saved": "saved; ", "died": "CRASHED", "refused": "refused"}[run["outcome"]]
            if run["outcome"] == "saved":
                what += "; ".join(run["findings"]) or "the resumed machine is unchanged"
            lines.append(f"   {name}: {what} ({counted(run['allocations'], 'allocation')})")
            lines += [f"       {line}" for line in run["kernel_lines"] if run["outcome"] != "saved"]
    return "\n".join(lines)


def doctor_text(document: DoctorDocument) -> str:
    """Return a line for each need of the laboratory, and the commands that meet the missing ones."""
    rows = [
        [
            "ok" if one["there"] else "MISSING" if one["required"] else "-",
            one["name"],
            one["where"],
            one["purpose"],
        ]
        for one in document["found"]
    ]
    lines = columns(rows)
    if document["ready"]:
        lines.append("the laboratory is ready")
    else:
        lines += ["to make it ready:", *(f"  {command}" for command in document["cures"])]
    return "\n".join(lines)


def support_text(document: ProveDocument) -> str:
    """Return the table of results, and for each case that did not pass the reason."""
    results = document["results"]
    rows = [["kernel", "case", "result", "seconds"]]
    rows += [[one["kernel"], one["case"], one["result"], str(one["seconds"])] for one in results]
    lines = columns(rows, right=frozenset({3}))
    lines += [f"{one['kernel']}, {one['case']}: {one['seen']}" for one in results if one["result"] != "PASS"]
    passed = sum(one["result"] == "PASS" for one in results)
    return "\n".join([*lines, f"{passed} of {len(results)} pass"])


def markdown(text: str) -> str:
    """Return text of a kernel or guest with the characters of Markdown's markup escaped."""
    return "".join(f"\\{char}" if char in "\\`*_<>[]|#" else char for char in text)
