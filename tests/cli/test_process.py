# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine inside an image by command: a process, its core in gdb, a file, drgn's helpers; wrong input."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.run import hibernaut
from tests.conftest import Golden
from tests.kernel.test_swapped_pages import BUSYBOX, MARKERS

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

IMAGE = "swap-6.1-lzo.img"


def test_a_process_and_its_pages(golden: Golden) -> None:
    """Mappings as the kernel has them; what was swapped out is counted, and read."""
    image = golden(IMAGE)
    document = hibernaut("process", image, "1", "--json").document
    assert (document["pid"], document["command"]) == (1, "init")
    assert (document["resident_pages"], document["swapped_pages"], document["lost_pages"]) == (105, 15, 0)
    names = [one["name"] for one in document["mappings"]]
    assert names.count("/bin/busybox") == 5
    assert {"[heap]", "[stack]", "[vdso]"} <= set(names)
    text = hibernaut("process", image, "1").out
    assert re.search(r"^5e2000-5e5000 +rw-p +1e1000 +0 +3 +0 +0 +/bin/busybox$", text, re.MULTILINE)
    assert text.endswith("105 pages in memory, 15 swapped out, 0 lost\n")


def test_bytes_of_a_process(golden: Golden) -> None:
    """The start of its program: an ELF header, as in the file."""
    result = hibernaut("process", golden(IMAGE), "1", "--read", "0x400000:0x20")
    assert (
        result.out.splitlines()[0]
        == "0000000000400000  7f 45 4c 46 02 01 01 03 00 00 00 00 00 00 00 00  |.ELF............|"
    )
    document = hibernaut("process", golden(IMAGE), "1", "--read", "4194304:4", "--json").document
    assert document["read"] == {"vaddr": "0x400000", "bytes": b"\x7fELF".hex()}


def test_a_core_opens_in_gdb(golden: Golden, tmp_path: Path) -> None:
    """Registers of user space, mapped files and memory: the instruction after a system call tests its result."""
    core = tmp_path / "init.core"
    result = hibernaut("process", golden(IMAGE), "1", "--core", core)
    assert f"{core}: core of it; 5 pages have no content in it" in result.out
    assert core.stat().st_mode & 0o777 == 0o600
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("gdb is not installed: apt-get install gdb")
    commands = ["info registers rip", "x/i $rip", "info proc mappings", "x/s 0x7ffdd10c3fc2", "x/b 0x7ffdd1168000"]
    words = [word for command in commands for word in ("-ex", command)]
    found = subprocess.run(
        [gdb, "-nx", "-batch", *words, "-c", core], capture_output=True, text=True, check=False, timeout=120
    )
    assert "cmp    $0xfffffffffffff000,%rax" in found.stdout
    assert "/bin/busybox" in found.stdout
    assert '"/bin/busybox"' in found.stdout  # its first argument, on the swapped-out stack
    assert "Cannot access memory at address 0x7ffdd1168000" in found.stdout + found.stderr


@pytest.mark.parametrize("image", sorted(MARKERS))
def test_a_file_is_put_together(golden: Golden, tmp_path: Path, image: str) -> None:
    """/bin/busybox, partly swapped out, has the hash of Debian's package; the list says where its pages are."""
    out = tmp_path / "busybox"
    document = hibernaut("files", golden(image), "--extract", "/bin/busybox", "-o", out, "--json").document
    assert hashlib.sha256(out.read_bytes()).hexdigest() == BUSYBOX
    assert (document["size_bytes"], document["missing_pages"]) == (1982256, 0)
    assert out.stat().st_mode & 0o777 == 0o600
    listed = {file["path"]: file for file in hibernaut("files", golden(image), "--json").document["files"]}
    data = listed["/tmp/data"]
    assert (data["resident_pages"], data["swapped_pages"], data["only_here"]) == (*MARKERS[image], True)


def test_a_dump_needs_the_swap_area(golden: Golden, tmp_path: Path) -> None:
    """Without it, pages are missing and say which area to give; with it, by size or by number, none are."""
    dump, area, out = golden("ram-6.1-lzo.elf"), golden(IMAGE), tmp_path / "busybox"
    without = hibernaut("files", dump, "--extract", "/bin/busybox", "-o", out)
    assert without.status == 1
    assert "swap area 0 (/dev/vda) holds 1097 pages; give it with --swap 0=PATH" in without.err
    assert "pages are missing and read as zeroes" in without.out
    for given in (str(area), f"0={area}"):
        assert hibernaut("files", dump, "--extract", "/bin/busybox", "-o", out, "--swap", given).status == 0
        assert hashlib.sha256(out.read_bytes()).hexdigest() == BUSYBOX
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    refused = hibernaut("files", dump, "--swap", other)
    assert (refused.status, "its header counts 1, swap area 0 has 98304 slots" in refused.err) == (2, True)
    refused = hibernaut("files", dump, "--swap", f"4={area}")
    assert "the kernel uses no swap area 4" in refused.err
    assert refused.status == 2


def test_drgn_reads_what_was_swapped_out(golden: Golden, tmp_path: Path) -> None:
    """Arguments of a process by drgn's own helper; `prog` and arguments as drgn's command gives them."""
    script = tmp_path / "tasks.py"
    script.write_text(
        "import sys\n"
        "from drgn.helpers.linux.mm import cmdline\n"
        "from drgn.helpers.linux.pid import find_task\n"
        "print(cmdline(find_task(int(sys.argv[1]))))\n"
        "print(prog['init_uts_ns'].name.release.string_().decode())\n"
    )
    result = hibernaut("drgn", golden(IMAGE), script, "1")
    assert result.out == "[b'/bin/busybox', b'sh', b'/init', b'nokaslr']\n6.1.0-56-amd64\n"
    document = hibernaut("drgn", golden("swap-6.12-lz4.img"), "--json").document
    assert document["release"] == "6.12.107+deb13-amd64"
    assert document["types"] > 100_000
    assert document["swap_areas"] == [0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["process", "IMAGE", "2"],
            "process 2 (kthreadd) has no address space of its own: it is a thread of the kernel",
        ),
        (["process", "IMAGE", "4000"], "the machine has no process 4000"),
        (["process", "IMAGE", "1", "--read", "12"], "expected VADDR:SIZE"),
        (["process", "IMAGE", "1", "--read", "0x10000:4"], "the process has nothing mapped at 0x10000"),
        (["process", "IMAGE", "1", "--read", "0x400000:0"], "--read takes 1 to"),
        (["files", "IMAGE", "--extract", "/no/such"], "/no/such is not in the kernel's cache of names"),
        (["files", "IMAGE", "--extract", "/tmp"], "/tmp is not a regular file"),
        (["files", "IMAGE", "-o", "x"], "give both"),
        (["drgn", "IMAGE", "no-such-script.py"], "No such file or directory"),
    ],
)
def test_wrong_input(golden: Golden, words: list[str], told: str) -> None:
    """One line, exit status 2 or 1."""
    result = hibernaut(*[golden(IMAGE) if word == "IMAGE" else word for word in words])
    assert result.status in (1, 2)
    assert told in result.err
    assert "Traceback" not in result.err


def test_no_output_replaces_what_it_is_made_of(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither SOURCE nor a swap area; a default name is not taken from a file that exists."""
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "swap.img"
    shutil.copy(golden(IMAGE), image)
    before = image.read_bytes()
    for words in (
        ("files", image, "--extract", "/bin/busybox", "-o", image),
        ("files", golden("ram-6.1-lzo.elf"), "--swap", f"0={image}", "--extract", "/bin/busybox", "-o", image),
        ("process", image, "1", "--core", image),
    ):
        refused = hibernaut(*words)
        assert (refused.status, "is the source itself" in refused.err) == (2, True)
    (tmp_path / "busybox").write_text("mine")
    refused = hibernaut("files", image, "--extract", "/bin/busybox")
    assert (refused.status, "busybox exists" in refused.err) == (2, True)
    assert (tmp_path / "busybox").read_text() == "mine"
    assert image.read_bytes() == before
