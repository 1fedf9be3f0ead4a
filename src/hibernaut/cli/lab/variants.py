# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab variants`: the kinds of guests."""

from __future__ import annotations

import dataclasses

from hibernaut.cli.common import JsonOption, QuietOption, console, print_json
from hibernaut.lab.variants import VARIANTS
from hibernaut.report.text import columns

__all__ = ["variants"]


def variants(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the kinds of guests."""
    if json:
        print_json({"variants": [dataclasses.asdict(one) for one in VARIANTS]})
    elif not quiet:
        console().print("\n".join(columns([one.name, one.what] for one in VARIANTS)))
