# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m tests.crashes.recorded NAME FOLDER IMAGE OUT CODE`: run a command, then code; keep its calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.crashes.calls import Recorder
from tests.crashes.scenarios import SCENARIOS

__all__: list[str] = []


def main() -> None:
    """Record the command of these arguments."""
    name, folder, image, out, beside = sys.argv[1:]
    scenario = next(one for one in SCENARIOS if one.name == name)
    recorder = Recorder(Path(folder))
    with recorder.watching():
        scenario.run(Path(folder), Path(image))
        exec(beside)
    Path(out).write_text(json.dumps([(call.what, len(call.data) or call.offset) for call in recorder.calls]))


if __name__ == "__main__":
    main()
