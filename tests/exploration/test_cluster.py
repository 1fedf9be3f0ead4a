# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep on a Dask cluster: the same as on this machine's cores, even if workers are lost."""

from __future__ import annotations

import os
import signal
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import HibernautError
from hibernaut.exploration import cluster as cluster_module
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.plan import Sweep, layouts
from hibernaut.exploration.sweep import Progress, run_sweep

distributed = pytest.importorskip("distributed", reason="the cluster needs the extra dask")

# Dask's own: what it warns of when workers are killed is what the test is about.
pytestmark = pytest.mark.filterwarnings("ignore")

SWEEP = Sweep(Family(regions=(0, 1, 2), kinds=(RegionKind.PAGE, RegionKind.BLOCK)), ("remap", "fixmap"))


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three workers, one thread each, which their nannies restart."""
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        yield cluster


def test_two_workers_are_killed_in_mid_sweep(cluster: Any, tmp_path: Path) -> None:
    """Every machine once in the file and in the sums, the same as without a cluster: nothing lost, nothing twice."""
    total = len(list(layouts(SWEEP.family)))
    killed: list[int] = []

    def told(progress: Progress) -> None:
        for at, number in ((3, 0), (8, 1)):
            if progress.machines == at and len(killed) == number:
                process = list(cluster.workers.values())[number].process
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    path = tmp_path / "out.jsonl"
    found = run_sweep(SWEEP, path, scheduler=cluster.scheduler_address, progress=told)
    assert len(set(killed)) == 2
    lines = path.read_text().splitlines()[1:]
    assert len(lines) == len(set(lines)) == total
    assert found == run_sweep(SWEEP, processes=1)


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, no hanging: the address that does not answer is named."""
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    for wrong in (address, "nonsense://x"):
        with pytest.raises(HibernautError, match="no Dask scheduler answers"):
            run_sweep(SWEEP, scheduler=wrong)
