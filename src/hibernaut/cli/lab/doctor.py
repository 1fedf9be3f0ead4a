# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab doctor`: the needs of the laboratory."""

from __future__ import annotations

import typer

from hibernaut.cli.lab.options import CacheOption
from hibernaut.cli.options import OutputOptions
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.doctor import cures, examine
from hibernaut.report.documents import DoctorDocument, NeedDocument
from hibernaut.report.text import doctor_text

__all__ = ["doctor"]


def doctor(output: OutputOptions, cache: CacheOption = None) -> None:
    """List the needs of the laboratory, those that are missing, and the commands that install them.

    The exit status is 1 if a required one is missing.
    """
    found = examine(Cache(cache))
    ready = all(one.there for one in found if one.need.required)
    rows: list[NeedDocument] = [
        {"name": one.need.name, "purpose": one.need.purpose, "required": one.need.required, "there": one.there,
         "where": one.where}
        for one in found
    ]  # fmt: skip
    document: DoctorDocument = {"ready": ready, "found": rows, "cures": cures(found)}
    output.answer(document, doctor_text)
    if not ready:
        raise typer.Exit(1)
