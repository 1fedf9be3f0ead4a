# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab variants`: the kinds of guests."""

from __future__ import annotations

import dataclasses

from hibernaut.cli.options import OutputOptions
from hibernaut.lab.variants import VARIANTS
from hibernaut.report.text import columns

__all__ = ["variants"]


def variants(output: OutputOptions) -> None:
    """List the kinds of guests."""
    output.answer(
        {"variants": [dataclasses.asdict(one) for one in VARIANTS]},
        lambda _: "\n".join(columns([one.name, one.what] for one in VARIANTS)),
    )
