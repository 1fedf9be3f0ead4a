# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m tests.crashes.forks JOB`: run a command once for each of its calls, with a signal right before the call.

A program of its own, since a process with threads must not fork: each run is a child that has everything imported.
The job is JSON: name, image, work (a folder) and signals; the results are printed as JSON lines.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from hibernaut.cli import main as hibernaut_main
from tests.crashes.calls import Recorder
from tests.crashes.scenarios import SCENARIOS, Scenario

__all__: list[str] = []


def child(scenario: Scenario, folder: Path, image: Path, number: int, at: int) -> None:
    """Run the command, with a signal before its call of that number; does not return."""
    log = os.open(folder.with_name("log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["hibernaut", *scenario.command(folder, image)]

    def before(call: int) -> None:
        if call == at:
            os.kill(os.getpid(), number)

    recorder = Recorder(folder, before)
    status = 70
    try:
        with recorder.watching(), scenario.around():
            hibernaut_main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Do the job."""
    job = json.loads(sys.argv[1])
    scenario = next(one for one in SCENARIOS if one.name == job["name"])
    work, image = Path(job["work"]), Path(job["image"])
    warm = work / "warm"
    warm.mkdir()
    scenario.prepare(warm)
    scenario.run(warm, image)  # imports what the children need, and computes what is computed once
    for name in job["signals"]:
        for at in range(job["calls"]):
            place = work / f"{name}-{at}"
            folder, temporary = place / "folder", place / "tmp"
            folder.mkdir(parents=True)
            temporary.mkdir()
            scenario.prepare(folder)
            pid = os.fork()
            if not pid:
                os.environ["TMPDIR"] = str(temporary)
                child(scenario, folder, image, getattr(signal, name), at)
            _, ended = os.waitpid(pid, 0)
            result = {
                "signal": name,
                "call": at,
                "status": os.waitstatus_to_exitcode(ended),
                "printed": (place / "log").read_text(),
                "temporary": sorted(os.listdir(temporary)),
            }
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
