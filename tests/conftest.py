# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: the golden data of real kernels, unpacked once a session."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pytest
import zstandard
from hypothesis import HealthCheck, settings

from tests.interrupts import Interrupts

# Examples are few by default so that the whole run stays short; HYPOTHESIS_PROFILE=thorough digs deeper.
# No deadlines: the machine may be busy. Function-scoped fixtures are folders, which examples may share.
settings.register_profile(
    "default",
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts background jobs so, and programs that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW_SWITCH = "HIBERNAUT_SLOW"
"""1: run the slow tests too."""
SLOW = (
    "tests/crashes/test_failures.py::test_signals_at_each_call_of_all_others",
    "tests/crashes/test_witness.py::test_strace_sees_the_same_calls_of_all_others",
    "tests/docs/test_browser.py",
    "tests/exploration/test_invariants.py::test_larger_families_add_nothing",
    "tests/exploration/test_search.py::test_merging_equal_states_loses_no_run",
    "tests/exploration/test_search.py::test_one_frame_of_each_class_is_enough",
    "tests/exploration/test_search.py::test_the_ends_of_a_torn_list_decide_which_allocation_crashes",
    "tests/exploration/test_wander.py",
    "tests/cli/test_demo.py::test_demo_image_holds_the_unmapped_pages",
    "tests/cli/test_explore.py::test_answers_of_one_study",
    "tests/cli/test_help.py::test_the_example_runs[answers]",
    "tests/cli/test_help.py::test_the_example_runs[demo]",
    "tests/cli/test_rewrite.py::test_killed_at_any_instant",
    "tests/hibernation/checks/test_translations.py::test_pages_mapped_otherwise_are_found_one_by_one",
    "tests/hibernation/test_scale.py",
    "tests/linux/test_cpa_selftest.py",
    "tests/report/test_page_in_browser.py",
    "tests/studies/test_answers.py",
)
"""Tests that take seconds by their nature, by the beginning of their names; `.ci/run` runs them."""

KERNEL_BUILD_SWITCH = "HIBERNAUT_BUILD"
"""1: run the tests that build whole kernels, too: half an hour each on two cores; `.ci/run` does not."""

REPOSITORY = Path(__file__).resolve().parent.parent
HOW_TO_GET = (
    "golden data of real kernels not found: set HIBERNAUT_GOLDEN to a folder that holds expected.json and the "
    "*.zst files, or put them in ../shared/golden beside the checkout (CONTRIBUTING.md says how they are made)"
)


class Golden:
    """Access to the golden data: call it with an unpacked file's name."""

    def __init__(self, folder: Path, unpacked: Path) -> None:
        self.folder = folder
        self._unpacked = unpacked

    @cached_property
    def expected(self) -> dict[str, Any]:
        """The facts that a reader must find, by file."""
        found: dict[str, Any] = json.loads((self.folder / "expected.json").read_text())
        return found

    def packed(self, name: str) -> Path:
        """The zstd-compressed file as it was delivered."""
        return self.folder / f"{name}.zst"

    def __call__(self, name: str) -> Path:
        """The unpacked file (sparse), made once and shared by all test processes. Never write to it."""
        target = self._unpacked / name
        if not target.exists():
            partial = target.with_name(f"{name}.{os.getpid()}.partial")
            unpack_sparse(self.packed(name), partial)
            partial.chmod(0o444)
            partial.rename(target)
        return target


def unpack_sparse(packed: Path, target: Path) -> None:
    """Decompress with holes where there are zeroes."""
    with packed.open("rb") as source:
        copy_sparse(zstandard.ZstdDecompressor().stream_reader(source), target)


def copy_sparse(source: IO[bytes] | zstandard.ZstdDecompressionReader, target: Path) -> None:
    """Copy a stream to a file, pieces of zeroes as holes."""
    zeroes = bytes(1 << 16)
    with target.open("wb") as out:
        while chunk := source.read(1 << 16):
            if chunk == zeroes[: len(chunk)]:
                out.seek(len(chunk), os.SEEK_CUR)
            else:
                out.write(chunk)
        out.truncate()


def golden_folder() -> Path | None:
    """The folder that `HIBERNAUT_GOLDEN` names, else ../shared/golden; None if it holds no data."""
    named = os.environ.get("HIBERNAUT_GOLDEN")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "golden"
    return folder if (folder / "expected.json").exists() else None


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The golden data, or a skip that says how to get it; with HIBERNAUT_GOLDEN_REQUIRED set, a failure instead."""
    folder = golden_folder()
    if folder is None:
        if os.environ.get("HIBERNAUT_GOLDEN_REQUIRED"):
            pytest.fail(HOW_TO_GET)
        pytest.skip(HOW_TO_GET)
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    unpacked = base / "golden"
    unpacked.mkdir(exist_ok=True)
    return Golden(folder, unpacked)


@pytest.fixture
def golden_copy(golden: Golden, tmp_path: Path) -> Any:
    """A writable sparse copy of an unpacked golden file: `golden_copy("swap-6.1-lzo.img")`."""

    def copy(name: str) -> Path:
        target = tmp_path / name
        with golden(name).open("rb") as source:
            copy_sparse(source, target)
        return target

    return copy


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """See `Interrupts`."""
    made = Interrupts()
    yield made
    made.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they need: the golden data, a laboratory, time; leave out the slow ones unless wanted."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"golden", "golden_copy"}:
            item.add_marker("golden")
        if any(name.startswith("lab_") for name in fixtures):
            item.add_marker("lab")
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
    if not os.environ.get(SLOW_SWITCH) and not config.option.markexpr and not _named(config):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def _named(config: pytest.Config) -> bool:
    """Return whether the command line names a file or a test: then nothing is left out."""
    return any("::" in name or name.endswith(".py") for name in config.invocation_params.args)


def pytest_report_header() -> str:
    """Say what a run without names leaves out."""
    return f"slow tests: {'included' if os.environ.get(SLOW_SWITCH) else f'left out; {SLOW_SWITCH}=1 includes them'}"
