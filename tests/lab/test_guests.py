# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels: the quick subset of `make lab`, and the laboratory's own behaviour."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.lab.cases.runner import prove
from hibernaut.lab.cases.table import QUICK, cases_of
from hibernaut.lab.golden import check_golden, make_golden
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.laboratory import Lab
from tests.cli.run import hibernaut, refused
from tests.conftest import REPOSITORY, Golden
from tests.lab.conftest import unavailable

README = REPOSITORY / "README.md"
HOLDER = """
import time
from hibernaut.lab.host.kernels import get_kernel, line_named
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.vm.qemu import Hardware, qemu
with qemu(Hardware(get_kernel(Cache(), line_named("6.1")).vmlinuz, None, "")) as guest:
    while not guest.console():
        time.sleep(0.05)
    print(guest.process.pid, guest.folder, flush=True)
    time.sleep(600)
"""


def test_rewritten_images_resume(lab_61: Lab) -> None:
    """The second of the quick cases, as in docs/support.md, on Linux 6.1."""
    (result,) = prove([lab_61], cases_of(QUICK[1:2]))
    if result.passed is None:
        unavailable(result.seen)
    assert result.passed, result.seen


def test_the_readmes_takeover(lab_61: Lab) -> None:
    """The third: the session in the README, line by line, but for the kernel's release and the number of pages."""
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
    """Return a session without values that differ between runs or between Debian's kernels."""
    return re.sub(r"\d+ pages to copy|: \d+ pages,", "N pages", re.sub(r"6\.1\.0-\d+", "6.1.0-N", text))


def test_hibernate_and_resume_on_the_command_line(lab_61: Lab, tmp_path: Path) -> None:
    """One command makes an image, the next one resumes from it; the image stays what it was."""
    folder = tmp_path / "guest"
    made = hibernaut("lab", "hibernate", folder, "--cache", lab_61.cache.root, "--json")
    assert made.status == 0, made.err
    assert made.document["outcome"] == "hibernated"
    open_to_others = {path.name for path in folder.iterdir() if path.stat().st_mode & 0o077}
    assert open_to_others == {"initramfs", "machine.json"}  # neither holds memory
    assert "PM: hibernation: Need to copy" in (folder / "kernel.log").read_text()
    assert hibernaut("inspect", folder / "swap.img", "--quiet").status == 0
    resumed = hibernaut("lab", "resume", folder, "--cache", lab_61.cache.root)
    assert resumed.status == 0, resumed.err
    assert resumed.out.startswith("PASS resumed, 2048 pages as they were")
    assert hibernaut("inspect", folder / "swap.img", "--quiet").status == 0


def test_an_image_without_a_record_resumes(lab_61: Lab, golden: Golden) -> None:
    """An image without a lab record resumes, and nothing more is claimed; a foreign compressor is refused."""
    own = hibernaut("lab", "resume", golden("swap-6.1-lzo.img"), "--cache", lab_61.cache.root)
    assert own.status == 0, own.out + own.err
    assert own.out.startswith("PASS resumed; nothing was verified")
    newer = hibernaut("lab", "resume", golden("swap-6.12-lz4.img"), "--cache", lab_61.cache.root)
    assert newer.status == 1
    assert newer.out.startswith("FAIL fresh boot: ")
    assert "PM: LZO decompression failed" in newer.out


def test_an_image_inside_a_larger_file_resumes(lab_61: Lab, golden: Golden, tmp_path: Path) -> None:
    """--base: the guest's disk begins there; without it the same file holds no image for the kernel."""
    base, inside = 5 * 512, tmp_path / "disk"
    inside.write_bytes(bytes(base) + golden("swap-6.1-lzo.img").read_bytes())
    words = ("lab", "resume", inside, "--cache", lab_61.cache.root, "--base")
    found = hibernaut(*words, base)
    assert found.status == 0, found.out + found.err
    assert found.out.startswith("PASS resumed; nothing was verified")
    missed = hibernaut(*words, 0)
    assert missed.status == 1
    assert missed.out.startswith("FAIL fresh boot: ")
    assert "not a multiple of 512" in refused(*words, base + 1)


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


def test_our_readers_agree_with_the_kernel(lab_61: Lab, tmp_path: Path) -> None:
    """Test data made here: counts, addresses, checksums, holes, secret pages; and a wrong fact in it is noticed."""
    folder, workshop = tmp_path / "golden", tmp_path / "workshop"
    folder.mkdir()
    workshop.mkdir()
    expected = make_golden(lab_61, folder, workshop, lambda _text: None)
    assert json.loads((folder / "expected.json").read_text()) == expected
    assert check_golden(folder, expected) == []
    assert len(expected["ram-6.1-secretmem.elf"]["secret_frames"]) == 1292
    for name, facts in expected.items():
        for key in facts:
            (told,) = check_golden(folder, {name: {**facts, key: altered(facts[key])}})
            assert told.startswith(f"{name}: {key} is ")


def altered(fact: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(fact, dict):
        return {key: value + 4 for key, value in fact.items()}
    if isinstance(fact, list):
        return [*fact, ["0x1", 1]] if not fact or isinstance(fact[0], list) else fact[1:]
    return fact + 1 if isinstance(fact, int) else fact + "0"
