# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents of machines: the audit, the cells of the matrix, the demonstration, the explanation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hibernaut.hibernation.audit import Audit
from hibernaut.hibernation.depletion import Depletion
from hibernaut.hibernation.machine_in_source import MachineInSource
from hibernaut.report.depletion import depletion_document
from hibernaut.report.documents import (
    AuditDocument,
    CellDocument,
    DemoDocument,
    ExplainDocument,
    RunDocument,
)
from hibernaut.report.page_tables import gap_documents
from hibernaut.report.text import counted, hex_or_none
from hibernaut.studies.demo import ImageReadBack
from hibernaut.studies.explain import QUESTION, Branch
from hibernaut.studies.matrix import SITUATIONS, Cell

__all__ = ["audit_document", "cell_document", "demo_document", "explain_document", "run_document"]

SHOWN_RUNS = 3
SHOWN_SPLITS = 20


def audit_document(
    found: Audit, inside: MachineInSource, depletion: Depletion | None = None, no_depletion: str | None = None
) -> AuditDocument:
    """Return the document of an audit; of long lists the first entries and the number of the others.

    Args:
        found: the audit.
        inside: its machine.
        depletion: the splits that find a page, if known.
        no_depletion: reason why they are not.
    """
    return {
        "rules": inside.machine.rules.line,
        "rules_from": inside.rules.rules_from,
        "saveable_pages": found.saveable_pages,
        "refused": found.refused,
        "classes": [
            {
                "name": one.name,
                "pages": one.frames.total_pages,
                "first": [
                    {"start_pfn": f"{start:#x}", "pages": pages}
                    for start, pages in zip(
                        one.frames.starts[:SHOWN_RUNS].tolist(), one.frames.nr_pages[:SHOWN_RUNS].tolist(), strict=True
                    )
                ],
                "more": len(one.frames) > SHOWN_RUNS,
                "today": one.today,
                "fixmap": one.fixmap,
                "today_bad": one.today_bad,
                "fixmap_bad": one.fixmap_bad,
            }
            for one in found.classes
        ],
        "allocations": found.allocations,
        "splits": [
            {
                "start_pfn": f"{split.start_pfn:#x}",
                "level": split.level.size,
                "first_pfn": f"{split.first_pfn:#x}",
                "pages": split.nr_pages,
                "table_pfn": f"{split.table_pfn:#x}",
                "order": str(split.order),
                "allocations": split.allocations,
            }
            for split in found.splits[:SHOWN_SPLITS]
        ],
        "more_splits": max(0, len(found.splits) - SHOWN_SPLITS),
        "depletion": None if depletion is None else depletion_document(depletion, found.allocations),
        "no_depletion": no_depletion,
        "safe_today": found.safe_today,
        "safe_by_fixmap": found.safe_by_fixmap,
        "gaps": gap_documents(inside.source),
        "gaps_from": inside.source.gaps_from,
    }


def cell_document(cell: Cell) -> CellDocument:
    """Return the document of a cell of the matrix."""
    return {
        "way": cell.way.name,
        "situation": cell.situation.name,
        "outcome": cell.status,
        "saved_pages": cell.snapshot.frames.total_pages if cell.snapshot else 0,
        "allocations": len(cell.after.allocations),
        "failed_checks": list(cell.failed_checks),
        "findings": len(cell.violations),
        "first_findings": [str(violation) for violation in cell.violations[:5]],
        "error": str(cell.error) if cell.error else None,
    }


def run_document(cell: Cell) -> RunDocument:
    """Return the document of a cell, as the explanation shows it."""
    told: dict[str, int] = {}
    for violation in cell.violations:
        told[violation.invariant] = told.get(violation.invariant, 0) + violation.nr_pages
    return {
        "outcome": cell.status,
        "allocations": len(cell.after.allocations),
        "failed_checks": list(cell.failed_checks),
        "findings": [f"{check} ({counted(pages, 'page')})" for check, pages in told.items()],
        "kernel_lines": list(cell.last.log.kernel_lines),
    }


def demo_document(cells: Sequence[Cell], shown: Cell, image: ImageReadBack) -> DemoDocument:
    """Return the document of the demonstration.

    Args:
        cells: every way in every situation.
        shown: the cell whose kernel log is shown.
        image: the image that was written and read back.
    """
    return {
        "ways": list(dict.fromkeys(cell.way.name for cell in cells)),
        "situations": [{"name": one.name, "what": one.what} for one in SITUATIONS],
        "cells": [cell_document(cell) for cell in cells],
        "last_words": {
            "way": shown.way.name,
            "situation": shown.situation.name,
            "log": list(shown.last.log.lines),
        },
        "image": {
            "pages": image.pages,
            "crc32": hex_or_none(image.crc32),
            "blocks": image.blocks,
            "listed_as_saved": image.listed_as_saved,
            "wrong_pages": image.wrong_pages,
        },
    }


def explain_document(branches: Iterable[Branch], line: str) -> ExplainDocument:
    """Return the document of the explanation, by the rules of a kernel line."""
    return {
        "question": QUESTION,
        "rules": line,
        "branches": [
            {
                "title": branch.title,
                "path": list(branch.path),
                "today": run_document(branch.today),
                "fixmap": run_document(branch.fixmap),
            }
            for branch in branches
        ],
    }
