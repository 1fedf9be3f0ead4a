# SPDX-License-Identifier: GPL-2.0-or-later
"""Run hibernaut's command line, and write how many units of an image are read.

    python counted.py COUNTS ARGUMENT...

COUNTS becomes a JSON list: the number of different units that are read, all or a part of them, and that of all units of
the images that are read from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from hibernaut.cli.app import run
from hibernaut.memory.page import Bytes
from hibernaut.swsusp.stream import UnitStream


def main() -> None:
    """Count, for as long as the command runs."""
    units: set[int] = set()
    total = 0
    read_entries = UnitStream._read_entries

    def counted(stream: UnitStream, first: int, last: int, out: Bytes) -> None:
        nonlocal total
        begin, end = np.searchsorted(stream.index.first_entry, [first, last - 1], side="right").tolist()
        units.update(range(begin - 1, end))
        total = len(stream.index)
        read_entries(stream, first, last, out)

    UnitStream._read_entries = counted  # type: ignore[method-assign, assignment]
    try:
        run(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps([len(units), total]))


if __name__ == "__main__":
    main()
