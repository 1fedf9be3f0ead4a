# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that are judged as guests: Debian's, and those that `lab build` made, in a bisection too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.trial.findings import Word
from hibernaut.lab.trial.situations import situations_named
from hibernaut.lab.trial.trial import CURED, NOT_CURED, Tried, try_kernel, verdict_on
from tests.conftest import REPOSITORY
from tests.lab.conftest import unavailable

SCRIPT = """\
#!/bin/sh
set -e
tree=$({python} -c 'import sys
from hibernaut.lab.cure.cures import cure_named
from hibernaut.lab.host.build import plan_build
from hibernaut.lab.host.cache import Cache
cache = Cache()
print(plan_build(cache, "6.1", cure_named(sys.argv[1])).result(cache))' "$(cat cure)")
exec {python} -m hibernaut lab judge --tree "$tree" --case 2m-below --quick --quiet --bisect-for stock
"""
"""A script for `git bisect run`: the kernel of a commit is the result of `lab build` with the cure that it names."""


def judged(lab: Lab, *names: str) -> dict[str, Tried]:
    """Try a kernel in situations and return the results by name."""
    return {one.situation.name: one for one in try_kernel(lab, situations_named(names))}


def test_a_kernel_of_debian_is_not_cured(lab_61: Lab) -> None:
    """Linux 6.1: it takes RW from a page's entry, and crashes where an allocation fails."""
    try:
        region_module(lab_61.cache, lab_61.kernel)
    except LabUnavailable as error:
        unavailable(str(error))
    results = judged(lab_61, "4k", "2m-fails")
    assert verdict_on(list(results.values()))[0] == NOT_CURED, results
    assert results["plain"].finding.word == Word.CURED
    (entry,) = results["4k"].finding.why
    assert entry.startswith("1 entry of the kernel's page tables changed: PTE entry of 0xffff888")
    assert "loses RW" in entry
    assert results["2m-fails"].finding.why[:2] == (
        "1 allocation in the copy loop, 1 made to fail",
        f'the kernel says "{FAILED_TO_REMAP}"',
    )
    assert "in the copy, in swsusp_save" in results["2m-fails"].finding.why[2]


@pytest.mark.parametrize("case", ["4k-twice", "2m-above", "2m-fails", "no-table", "kfence"])
def test_the_cured_kernel_is_cured(lab_built: Callable[[str], Lab], case: str) -> None:
    """In each case in which the same source without the cure is not."""
    assert verdict_on(list(judged(lab_built("fixmap"), case).values()))[0] == CURED
    assert verdict_on(list(judged(lab_built("stock"), case).values()))[0] == NOT_CURED


@pytest.mark.parametrize(
    ("cure", "case", "why"),
    [
        ("no-flush", "4k-twice", "damaged"),
        ("no-null-check", "no-table", "in kernel_page_present"),
        ("copy-skipped", "4k", "damaged"),
        ("slot-never-cleared", "4k", "entry of the kernel's page tables changed"),
        ("frame-of-entry", "2m-below", "damaged"),
        ("still-unmaps", "2m-below", "of the kernel's page tables changed"),
    ],
)
def test_a_wrong_cure_is_noticed(lab_built: Callable[[str], Lab], cure: str, case: str, why: str) -> None:
    """By the case that must notice it, with the right reason."""
    result = judged(lab_built(cure), case)[case]
    assert result.finding.word == Word.NOT_CURED
    assert any(why in one for one in result.finding.why), result.finding.why


def test_a_bisection_finds_the_cure(lab_built: Callable[[str], Lab], tmp_path: Path) -> None:
    """Six commits, one of which cures the kernel: `git bisect run` names it. The kernels are not of Debian."""
    for cure in ("stock", "fixmap"):
        lab_built(cure)
    history = tmp_path / "history"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "GIT_CONFIG_GLOBAL": "/dev/null"}

    def git(*words: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        told = subprocess.run(
            ["git", *identity, *words], cwd=history, env=environment, capture_output=True, text=True, check=True
        )
        return told.stdout

    history.mkdir()
    git("init", "-q")
    commits = []
    for number, cure in enumerate(["stock", "stock", "stock", "fixmap", "fixmap", "fixmap"]):
        (history / "cure").write_text(cure)
        (history / "number").write_text(str(number))
        git("add", "-A")
        git("commit", "-q", "-m", f"commit {number}")
        commits.append(git("rev-parse", "HEAD").strip())
    script = tmp_path / "judge.sh"
    script.write_text(SCRIPT.format(python=sys.executable))
    script.chmod(0o755)
    git("bisect", "start", commits[-1], commits[0])
    told = git("bisect", "run", str(script))
    assert f"{commits[3]} is the first bad commit" in told
