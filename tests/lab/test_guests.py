"""Real kernels: the quick subset of what `make lab` proves, and the laboratory's own manners."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.lab.cases import QUICK, cases_of, prove
from hibernaut.lab.golden import make_golden
from hibernaut.lab.region import region_module
from hibernaut.lab.scenario import Lab
from hibernaut.linux import DirectMap
from hibernaut.linux.formula import formula_pages
from hibernaut.sources import open_memory
from tests.cli.run import hibernaut
from tests.conftest import REPOSITORY, Golden, unpack_sparse
from tests.lab.conftest import unavailable

README = REPOSITORY / "README.md"
HOLDER = """
import time
from hibernaut.lab.kernels import get_kernel, line_named
from hibernaut.lab.cache import Cache
from hibernaut.lab.qemu import Hardware, qemu
with qemu(Hardware(get_kernel(Cache(), line_named("6.1")).vmlinuz, None, "")) as guest:
    while not guest.console():
        time.sleep(0.05)
    print(guest.process.pid, guest.folder, flush=True)
    time.sleep(600)
"""


def test_rewritten_images_resume(lab_61: Lab) -> None:
    """The first of the quick cases, as in docs/support.md, on Linux 6.1."""
    (result,) = prove([lab_61], cases_of(QUICK[:1]))
    if result.passed is None:
        unavailable(result.seen)
    assert result.passed, result.seen


def test_the_readmes_takeover(lab_61: Lab) -> None:
    """The second: the session in the README, line by line, but for the kernel's release and the number of pages."""
    try:
        region_module(lab_61.cache, lab_61.kernel)
    except LabUnavailable as error:
        unavailable(str(error))
    (shown,) = re.findall(
        r"^```console lab\n\$ hibernaut takeover\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL
    )
    result = hibernaut("takeover", "--cache", lab_61.cache.root)
    assert result.status == 0, result.out + result.err
    assert varying(result.out) == varying(shown)


def varying(text: str) -> str:
    """A session with what differs from run to run, or from one of Debian's kernels to the next, left out."""
    return re.sub(r"\d+ pages to copy|: \d+ pages, into", "N pages", re.sub(r"6\.1\.0-\d+", "6.1.0-N", text))


def test_hibernate_and_resume_on_the_command_line(lab_61: Lab, tmp_path: Path) -> None:
    """One command makes an image, the next one resumes from it; the image stays what it was."""
    folder = tmp_path / "guest"
    made = hibernaut("lab", "hibernate", folder, "--cache", lab_61.cache.root, "--json")
    assert made.status == 0, made.err
    assert made.document["outcome"] == "hibernated"
    assert "PM: hibernation: Need to copy" in (folder / "kernel.log").read_text()
    assert hibernaut("inspect", folder / "swap.img", "--quiet").status == 0
    resumed = hibernaut("lab", "resume", folder, "--cache", lab_61.cache.root)
    assert resumed.status == 0, resumed.err
    assert resumed.out.startswith("PASS resumed, 2048 pages as they were")
    assert hibernaut("inspect", folder / "swap.img", "--quiet").status == 0


def test_a_strangers_image_resumes(lab_61: Lab, golden: Golden) -> None:
    """An image of a guest that is not ours comes back, and nothing more is claimed; a foreign compressor is refused."""
    own = hibernaut("lab", "resume", golden("swap-6.1-lzo.img"), "--cache", lab_61.cache.root)
    assert own.status == 0, own.out + own.err
    assert own.out.startswith("PASS resumed; nothing was verified")
    newer = hibernaut("lab", "resume", golden("swap-6.12-lz4.img"), "--cache", lab_61.cache.root)
    assert newer.status == 1
    assert newer.out.startswith("FAIL fresh boot: ")
    assert "PM: LZO decompression failed" in newer.out


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_guest_outlives_its_parent(lab_61: Lab, end: signal.Signals) -> None:
    """However the parent ends, QEMU ends with it."""
    environment = {**os.environ, "HIBERNAUT_LAB_CACHE": str(lab_61.cache.root)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        assert "qemu" in Path(f"/proc/{pid}/cmdline").read_text()
        parent.send_signal(end)
        parent.wait()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("QEMU is still there")
    assert end is not signal.SIGINT or not Path(folder).exists()


class Made:
    """Golden data made by the laboratory."""

    def __init__(self, folder: Path, expected: dict[str, Any]) -> None:
        self.folder = folder
        self.expected = expected

    def __call__(self, name: str) -> Path:
        plain = self.folder / name
        if not plain.exists():
            unpack_sparse(self.folder / f"{name}.zst", plain)
        return plain


@pytest.fixture(scope="module")
def made(lab_61: Lab, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("golden")
    workshop = tmp_path_factory.mktemp("workshop")
    return Made(folder, make_golden(lab_61, folder, workshop, lambda _text: None))


def test_our_reader_finds_what_the_kernel_said(made: Made) -> None:
    """Counts from the kernel's log, addresses from kallsyms, the memory map's CRC from the guest's own /sys."""
    for name in ("swap-6.1-lzo.img", "swap-6.1-hole-2m.img"):
        expected = dict(made.expected[name])
        markers = expected.pop("marker_frames")
        document = hibernaut("inspect", made(name), "--json").document
        assert {key: document[key] for key in expected} == expected
        assert document["problems"] == []
        with open_memory(made(name)) as source:
            frames = np.concatenate([np.arange(int(first, 16), int(first, 16) + count) for first, count in markers])
            pages, present = source.memory.gather(frames)
            assert present.all()
            for number, page in enumerate(pages):
                assert page.tobytes().startswith(b"hibernaut lab: page %d of locked, seed " % number)


def test_the_map_of_a_dump_is_what_the_guest_said(made: Made) -> None:
    """What is mapped, or hidden, adds up to the kernel's own counters; a block out of the map is where its module says.

    Counter by counter they differ: the kernel counts a split of its text's other mapping here, too.
    """
    for name in ("ram-6.1-lzo.elf", "ram-6.1-hole-2m.elf"):
        expected = made.expected[name]
        with open_memory(made(name)) as source:
            assert source.cr3 is not None
            assert f"{source.cr3:#x}" == expected["cr3"]
            found = DirectMap.find(source.memory, source.cr3, source.levels)
            assert f"{found.base:#x}" == expected["direct_map_base"]
            runs: list[list[Any]] = [
                [f"{hole.start_pfn:#x}", hole.pages, hole.level.size, f"{hole.entry:#x}"]
                for hole in found.holes
                if str(hole.kind) == "not-present"
            ]
            assert runs == expected["not_present_runs"]
            hidden_bytes = sum(4096 * pages for _, pages, *_ in runs)
            assert sum(found.present_bytes.values()) + hidden_bytes == 1024 * sum(expected["direct_map_kib"].values())
            for start, pages, *_ in runs:
                frames = np.arange(int(start, 16), int(start, 16) + pages)
                assert np.array_equal(source.memory.gather(frames)[0], formula_pages(frames))


def test_secret_pages_are_where_the_guest_has_them(made: Made) -> None:
    """Every frame of memfd_secret, as the guest's pagemap tells, is not present in the map, and no other is."""
    name = "ram-6.1-secretmem.elf"
    expected = made.expected[name]
    with open_memory(made(name)) as source:
        assert source.cr3 is not None
        found = DirectMap.find(source.memory, source.cr3, source.levels)
        hidden = [
            f"{pfn:#x}"
            for hole in found.holes
            if str(hole.kind) == "not-present"
            for pfn in range(hole.start_pfn, hole.start_pfn + hole.pages)
        ]
    assert hidden == expected["secret_frames"]
    assert len(hidden) == 1292
