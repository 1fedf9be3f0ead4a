# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts of the laboratory: guests, threads and programs end before the call does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from hibernaut.errors import LabError
from hibernaut.lab import laboratory
from hibernaut.lab.cases.case import LabCase
from hibernaut.lab.cases.runner import prove
from hibernaut.lab.host import debian
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.variants import VARIANTS
from tests.interrupts import Interrupts

PROVE = """
import time
from pathlib import Path
from hibernaut.lab.cases.runner import prove
from hibernaut.lab.cases.table import QUICK, cases_of
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import get_kernel, line_named
from hibernaut.lab.laboratory import Lab

TASK = Path("/proc/self/task")

def threads():
    return {one.name for one in TASK.iterdir()}

cache = Cache()
lab = Lab(get_kernel(cache, line_named("6.1")), cache)
before = threads()
try:
    list(prove([lab], cases_of(QUICK[1:2])))
except KeyboardInterrupt:
    children = [pid for one in TASK.iterdir() for pid in (one / "children").read_text().split()]
    while not threads() <= before:  # a thread that returned is there for another moment
        time.sleep(0.01)
    print(children)
"""


class FakeLab:
    """A laboratory that only notes that it is closed."""

    kernel = GuestKernel("6.1", "6.1.0", Path("vmlinuz"), Path("modules"))

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.reopened = False

    def close(self) -> None:
        """Note that no guest may run."""
        self.closed.set()

    def reopen(self) -> None:
        """Note that guests may run again."""
        self.reopened = True


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupted_proof_ends_its_cases(interrupts: Interrupts, times: int) -> None:
    """The case under way loses its guests and is waited for; the next one does not begin."""
    lab = FakeLab()
    seen: list[str] = []

    def run(_lab: Lab, _folder: Path) -> str:
        for _ in range(times):
            interrupts.send()
        assert lab.closed.wait(60)
        seen.append("ended")
        return "x"

    def never(_lab: Lab, _folder: Path) -> str:
        seen.append("begun")
        return "x"

    with interrupts.expected():
        list(prove([cast(Lab, lab)], [LabCase("one", "", run), LabCase("two", "", never)]))
    assert seen == ["ended"]
    assert lab.reopened


def test_a_proof_that_comes_to_its_end_closes_nothing() -> None:
    """Results are in order, and the laboratory stays open."""
    lab = FakeLab()
    cases = [LabCase(str(number), "", lambda _lab, _folder: "x") for number in range(9)]
    assert [result.case for result in prove([cast(Lab, lab)], cases, 3)] == [case.name for case in cases]
    assert not lab.closed.is_set()


class FakeMachine:
    """A QEMU that does nothing but be killed."""

    def __init__(self) -> None:
        self.process = self
        self.killed = False

    def kill(self) -> None:
        """Note it."""
        self.killed = True


def test_a_closed_laboratory_boots_no_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guests are killed, guests that boot meanwhile too; reopened it boots again."""
    machines: list[FakeMachine] = []
    lab = Lab(GuestKernel("6.1", "6.1.0", tmp_path, tmp_path))

    @contextmanager
    def qemu(_hardware: object) -> Iterator[FakeMachine]:
        machines.append(FakeMachine())
        yield machines[-1]

    class FakePort:
        def __init__(self, _machine: FakeMachine) -> None:
            pass

        def hello(self, _seconds: float) -> None:
            pass

    monkeypatch.setattr(laboratory, "qemu", qemu)
    monkeypatch.setattr(laboratory, "Port", FakePort)
    monkeypatch.setattr(laboratory, "initramfs", lambda *_: b"")
    with lab.boot(VARIANTS[0], tmp_path, []):
        lab.close()
    assert [machine.killed for machine in machines] == [True]
    with pytest.raises(LabError, match="closed"), lab.boot(VARIANTS[0], tmp_path, []):
        pass
    lab.reopen()
    with lab.boot(VARIANTS[0], tmp_path, []):
        pass
    assert [machine.killed for machine in machines] == [True, False, False]


def test_an_interrupted_unpacking_leaves_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that reads the package ends when the one that unpacks it is interrupted."""
    reader = tmp_path / "dpkg-deb"
    reader.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    reader.chmod(0o755)

    def interrupted(*_: Any, **__: Any) -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(debian, "_refuse_links", lambda _package, _folder: None)
    monkeypatch.setattr(debian, "program", lambda name: str(reader) if name == "dpkg-deb" else name)
    monkeypatch.setattr("hibernaut.lab.host.debian.subprocess.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        debian._unpack([tmp_path / "one.deb"], tmp_path / "root")
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_an_interrupted_proof_with_a_real_guest(lab_61: Lab) -> None:
    """Ctrl-C to the parent alone: its guest is killed at once, no thread and no program is left."""
    environment = {**os.environ, "HIBERNAUT_LAB_CACHE": str(lab_61.cache.root)}
    with subprocess.Popen(
        [sys.executable, "-c", PROVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as parent:
        while not runs_a_guest(parent.pid):
            assert parent.poll() is None
            time.sleep(0.1)
        parent.send_signal(signal.SIGINT)
        assert parent.communicate(timeout=600) == ("[]\n", "")


def runs_a_guest(pid: int) -> bool:
    """Whether a process has QEMU for a child."""
    children = [child for one in Path(f"/proc/{pid}/task").glob("*/children") for child in one.read_text().split()]
    return any("qemu-system" in Path(f"/proc/{child}/cmdline").read_text() for child in children)
