# SPDX-License-Identifier: GPL-2.0-or-later
"""The pool: the number of cores does not change the results, and no process is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hibernaut.exploration.sweep import run_sweep
from hibernaut.exploration.tally import Tally
from tests.exploration.sweeps import SMALL, open_lines


def test_cores_change_nothing(whole: tuple[Path, dict[str, Tally]], tmp_path: Path) -> None:
    """Two processes give the same results as one, including the shortest runs."""
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


INTERRUPTED = """
import multiprocessing, sys
from pathlib import Path
from hibernaut.exploration.families import Family
from hibernaut.exploration.plan import Sweep
from hibernaut.exploration.sweep import run_sweep

workers = set()

def told(progress):
    workers.update(process.pid for process in multiprocessing.active_children())
    if progress.machines == 2:
        print("two", flush=True)
        if HOW == "exception":
            raise KeyboardInterrupt

def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

if __name__ == "__main__":
    try:
        run_sweep(Sweep(Family(regions=(0, 1, 2, 3)), ("remap-generic",)), processes=2, progress=told)
    except KeyboardInterrupt:
        print(len(workers), sum(map(lives, workers)))
"""


@pytest.mark.parametrize("how", ["exception", "signal to the parent", "signal from the terminal"])
def test_an_interrupted_sweep_leaves_no_worker_at_work(how: str, tmp_path: Path) -> None:
    """When the call ends by an exception or Ctrl-C, its workers have ended, without output."""
    script = tmp_path / "interrupted.py"
    script.write_text(f"HOW = {how!r}\n{INTERRUPTED}")
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "two\n"
        if how == "signal to the parent":
            parent.send_signal(signal.SIGINT)
        elif how == "signal from the terminal":
            os.killpg(parent.pid, signal.SIGINT)
        out, err = parent.communicate(timeout=300)
    assert (out, err, parent.returncode) == ("2 0\n", "", 0)


def of_session(session: int) -> list[int]:
    """The processes of a session that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return found
