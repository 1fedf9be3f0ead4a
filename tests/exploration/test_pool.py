# SPDX-License-Identifier: GPL-2.0-or-later
"""The pool: as many cores as there are change nothing, and no process is left behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hibernaut.exploration.sweep import run_sweep
from hibernaut.exploration.tally import Tally
from tests.exploration.sweeps import SMALL, open_lines


def test_cores_change_nothing(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """On two processes the same comes out as on one, the shortest runs included."""
    both = run_sweep(SMALL, tmp_path / "out.jsonl", processes=2)
    assert both == whole[1]
    assert sorted(open_lines(tmp_path / "out.jsonl")) == sorted(open_lines(whole[0]))


LONG = """
from hibernaut.exploration.families import Family
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.sweep import run_sweep

def told(progress):
    print(progress.machines, flush=True)

if __name__ == "__main__":
    run_sweep(Sweep(Family(regions=(0, 1, 2, 3)), ("remap-generic",)), processes=2, progress=told)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look for processes in")
def test_a_killed_sweep_leaves_no_process_behind(tmp_path: Path) -> None:
    """SIGKILL of the parent in mid-sweep: its workers end, too, instead of waiting for work for ever."""
    script = tmp_path / "long.py"
    script.write_text(LONG)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        while parent.stdout.readline().strip() != b"2":
            assert parent.poll() is None
        assert len(of_session(parent.pid)) >= 3
        parent.kill()
    deadline = time.monotonic() + 60
    while of_session(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert of_session(parent.pid) == []


def of_session(session: int) -> list[int]:
    """The processes of a session that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return found
