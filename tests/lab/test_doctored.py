# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut doctor` inside guests: the table of situations, and, on demand, the guests themselves."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hibernaut.doctor.checks.table import CHECKS
from hibernaut.lab.doctored import (
    ON_A_RUNNING_GUEST,
    ON_THE_NEXT_BOOT,
    Diagnosed,
    diagnose_next_boots,
    diagnose_running,
    hibernate_diagnosed,
)
from hibernaut.lab.guest.python_disk import make_python_disk
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import get_kernel, line_named
from hibernaut.lab.laboratory import Lab

SWITCH = "HIBERNAUT_DOCTORED"
"""1: run the doctor in guests: some forty minutes, since Python is slow under emulation; `.ci/run` does not."""
on_demand = pytest.mark.skipif(os.environ.get(SWITCH) != "1", reason=f"forty minutes of guests: {SWITCH}=1 boots them")
LINE = "6.12"


def test_the_situations_name_checks() -> None:
    """Every expected check exists, every name is there once, and a healthy guest is among them."""
    situations = (*ON_A_RUNNING_GUEST, *ON_THE_NEXT_BOOT)
    known = {check.name for check in CHECKS}
    assert all(one.checks <= known for one in situations)
    assert len({one.name for one in situations}) == len(situations)
    assert ON_A_RUNNING_GUEST[0].checks == frozenset()


def test_an_outcome_compares_names() -> None:
    """A check too many and one too few both count."""
    assert Diagnosed("x", frozenset({"swap"}), {"swap": "would fail"}, None).passed
    assert not Diagnosed("x", frozenset({"swap"}), {}, None).passed
    assert not Diagnosed("x", frozenset(), {"swap": "warning"}, None).passed


def lab(line: str = LINE) -> Lab:
    """Return the laboratory with a kernel."""
    return Lab(get_kernel(Cache(), line_named(line)))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the disk with Python."""
    path = tmp_path_factory.mktemp("python") / "python.img"
    make_python_disk(path)
    return path


@on_demand
def test_on_a_running_guest(tmp_path: Path, python: Path) -> None:
    """Each situation of a running guest is named, and the healthy guest is silent."""
    found = list(diagnose_running(lab(), tmp_path, python))
    assert [(one.name, dict(one.found)) for one in found if not one.passed] == []


@on_demand
def test_on_the_next_boot(tmp_path: Path, python: Path) -> None:
    """Pages were predicted within 2 %, the compressed size within 3 %; each machine that boots next is judged rightly.

    Seen were 0.3 % and 0.6 to 2.1 %. Memory is compressed as the kernel does only where liblzo2 is installed.
    """
    found, log = hibernate_diagnosed(lab(), tmp_path, python)
    assert found.passed, dict(found.found)
    for words, predicted, part in (
        ("Need to copy", found.pages, 0.02),
        ("Image size after compression:", found.compressed_kib, 0.03),
    ):
        announced = re.search(rf"{words} (\d+)", log)
        assert announced is not None
        assert predicted is not None
        assert abs(predicted - int(announced[1])) < int(announced[1]) * part, (words, predicted, announced[1])
    others = list(diagnose_next_boots({None: lab(), "7.3": lab("7.3")}, tmp_path, python))
    assert [(one.name, dict(one.found)) for one in others if not one.passed] == []
