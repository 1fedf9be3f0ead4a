# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of the running kernel: read and not mapped, twice, and refused with one line where it cannot be read.

A core of a guest stands for /proc/kcore here; the laboratory reads the real one inside its guests.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hibernaut.doctor import live_memory
from hibernaut.doctor.live_memory import own_pages, pages_of_cpu_lists, pfns_of_pagemap, pfns_with_flags
from hibernaut.sources import open_memory
from hibernaut.volumes import files
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every file for one of /proc."""
    monkeypatch.setattr(files, "_is_of_proc", lambda _: True)


def test_live_memory_is_read(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that is not mapped has the same frames and bytes as one that is."""
    with open_memory(golden("ram-6.1-lzo.elf")) as mapped:
        monkeypatch.setattr(files, "_is_of_proc", lambda _: True)
        with open_memory(golden("ram-6.1-lzo.elf")) as read:
            assert (read.is_live, mapped.is_live) == (True, False)
            assert list(read.memory.ranges) == list(mapped.memory.ranges)
            pfns = np.array([1, 0x4402, 0x1000, 0x9F, 0xF000])
            for one, other in zip(read.memory.gather(pfns), mapped.memory.gather(pfns), strict=True):
                assert np.array_equal(one, other)


@pytest.mark.usefixtures("live")
def test_the_map_is_read_twice(golden: Golden) -> None:
    """`map` and `audit` report whether the tables changed while they were read."""
    said = "memory of the running kernel: its direct map was read twice, and both times it was the same"
    for command in ("map", "audit"):
        result = hibernaut(command, golden("ram-6.1-lzo.elf"))
        assert result.status == 0
        assert said in result.err


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "only root may read the memory of the running kernel"),
        (errno.EPERM, "its lockdown is confidentiality, or CAP_SYS_RAWIO is missing"),
        (errno.ENOENT, "it is built without CONFIG_PROC_KCORE"),
    ],
)
def test_memory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    """One line with the reason, for each error of opening it."""
    path = tmp_path / "kcore"
    opened = os.open

    def refuse(name: str, *rest: int) -> int:
        if str(name) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(name, *rest)

    monkeypatch.setattr(files, "KCORE", path)
    monkeypatch.setattr(os, "open", refuse)
    for command in ("audit", "map", "walk"):
        words = [path, "0xffffffff81000000"] if command == "walk" else [path]
        line = refused(command, *words)
        assert reason in line
        assert str(path) in line


def test_flags_of_pages() -> None:
    """Free, absent and offline frames are not saved; reserved ones and the rest are."""
    flags = [1 << 10, 0, 1 << 32, 1 << 20, 1 << 23, 1 << 5]
    assert pfns_with_flags(np.array(flags, dtype="<u8").tobytes(), 100).tolist() == [101, 102, 105]
    assert pfns_with_flags(b"\0" * 12, 7).tolist() == [7]


def test_pages_of_the_lists_of_the_cpus() -> None:
    """Of each CPU over all zones, in the words of a kernel."""
    text = (
        "Node 0, zone      DMA\n  pagesets\n    cpu: 0\n              count:    3\n              high:     0\n"
        "  vm stats threshold: 4\n    cpu: 1\n              count:    40\n              high:     9\n"
        "Node 0, zone    DMA32\n  pagesets\n    cpu: 0\n              count: 500\n              batch: 63\n"
    )
    assert pages_of_cpu_lists(text) == {0: 503, 1: 40}
    assert pages_of_cpu_lists(Path("/proc/zoneinfo").read_text()).keys() >= {0}


def test_the_lists_are_taken_as_memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page of theirs is one of this process, which can run where it could before; then nothing is held."""
    monkeypatch.setattr(live_memory, "pages_of_cpu_lists", lambda _text: dict.fromkeys(os.sched_getaffinity(0), 3000))
    cpus, before = os.sched_getaffinity(0), own_pages()
    with live_memory._cpu_lists_taken():
        during = own_pages()
    after = own_pages()
    assert before is not None
    assert during is not None
    assert after is not None
    assert during - before >= 3000 * len(cpus) - 100
    assert after - before < 1500
    assert os.sched_getaffinity(0) == cpus


def test_entries_of_pagemap() -> None:
    """Anonymous pages that are present; those of files, and those that are swapped out, are left out."""
    entries = [1 << 63 | 0x1234, 1 << 63 | 1 << 61 | 0x99, 1 << 62 | 0x55, 0, 1 << 63 | 1 << 55 | 0x77]
    assert pfns_of_pagemap(np.array(entries, dtype="<u8").tobytes()).tolist() == [0x1234, 0x77]


def test_pages_of_this_process() -> None:
    """Python itself has some thousand anonymous pages, and fewer than all of memory."""
    found = own_pages()
    assert found is not None
    assert 500 < found < 1 << 24
