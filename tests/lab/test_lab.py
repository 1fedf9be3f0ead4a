# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory without a guest: disks, kernels, what it says, what it refuses, its command line."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from hibernaut.errors import FormatError, HibernautError, LabUnavailable
from hibernaut.lab import scenario
from hibernaut.lab.cases.table import cases_of
from hibernaut.lab.host import programs
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.doctor import cures, examine
from hibernaut.lab.host.kernels import KERNEL_LINES, Kernel, kernel_of_files, line_named
from hibernaut.lab.scenario import Lab, Record
from hibernaut.lab.variants import VARIANTS, Swap, variant_named
from hibernaut.lab.vm.disks import PARTITION_START_BYTES, copy_disk, make_disk
from hibernaut.report.text import support_page, support_text
from hibernaut.swsusp.area import locate_area
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.volumes.files import open_plain
from tests.cli.run import hibernaut, refused

RECORD = Record("aa", "6.1.0-56-amd64", "6.1", VARIANTS[0], None, 0, (), ((0, 0x1E02, 4),), {"DirectMap4k": 4}, 20000)
BEFORE = {"block": "0x400", "pmd": "0x800fffffffbff062", "damaged": "0"}


# ---- data ----


def test_every_kernel_line_has_rules_and_every_variant_a_kernel() -> None:
    """What the lab boots, the image rules know; what a guest compresses with, some kernel can."""
    known = {name for line in KERNEL_LINES for name in (*image_rules_for_release(line).compressors, "none")}
    assert {variant.compressor for variant in VARIANTS} <= known
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert all(variant_named(swap.value).swap is swap for swap in (Swap.PARTITION, Swap.FILE))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(LabUnavailable, match=r"no kernel line '5\.4' \(known: 6\.1, 6\.12, 7\.3"):
        line_named("5.4")
    with pytest.raises(LabUnavailable, match=r"no guest variant 'x' \(known: lzo, lz4"):
        variant_named("x")
    with pytest.raises(HibernautError, match="no case is named like 'x y'"):
        cases_of(["x y"])


# ---- disks ----


def test_the_partition_is_where_the_table_says(tmp_path: Path) -> None:
    """Our partition table, read by our own reader of disks; and by sfdisk, where that is there."""
    disk = tmp_path / "disk"
    make_disk(disk, 16, Swap.PARTITION)
    with open_plain(disk) as file:
        area = locate_area(file, partition=1)
    assert (area.base_bytes, area.size_bytes) == (PARTITION_START_BYTES, (16 << 20) - PARTITION_START_BYTES)
    sfdisk = programs.Program("sfdisk", "fdisk", "").find()
    if sfdisk:
        told = subprocess.run([sfdisk, "--dump", disk], capture_output=True, text=True, check=True).stdout
        assert f"start={PARTITION_START_BYTES // 512:12d}" in told
        assert "type=82" in told


def test_a_disk_is_copied_with_its_holes(tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    make_disk(disk, 64, Swap.DISK)
    with disk.open("r+b") as file:
        file.seek(5 << 20)
        file.write(b"here")
    copy_disk(disk, copy)
    assert copy.stat().st_size == 64 << 20
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert copy.read_bytes()[5 << 20 :][:4] == b"here"


# ---- kernels of the user's own ----


def bzimage(path: Path, release: bytes = b"6.7.8-mine (me@here) #1") -> Path:
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x300).to_bytes(2, "little")
    head[0x500 : 0x500 + len(release)] = release
    path.write_bytes(head)
    return path


@pytest.mark.parametrize("given", [".", "lib/modules/6.7.8-mine"])
def test_a_kernel_of_the_users_own(tmp_path: Path, given: str) -> None:
    """The bzImage says its release; the modules are found from the root or directly."""
    (tmp_path / "lib" / "modules" / "6.7.8-mine" / "kernel").mkdir(parents=True)
    kernel = kernel_of_files(bzimage(tmp_path / "vmlinuz"), tmp_path / given)
    assert kernel.release == "6.7.8-mine"
    assert kernel.modules == tmp_path / "lib/modules/6.7.8-mine"


def test_what_is_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ")
    with pytest.raises(FormatError, match=r"byte 514: not a bzImage; expected HdrS"):
        kernel_of_files(path, tmp_path)
    with pytest.raises(FormatError, match="does not say its release"):
        kernel_of_files(bzimage(path, b"\0"), tmp_path)
    with pytest.raises(LabUnavailable, match=r"no modules of 6\.7\.8-mine there"):
        kernel_of_files(bzimage(path), tmp_path)


# ---- the record beside an image ----


def test_a_record_comes_back(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    assert Record.load(tmp_path) == RECORD


def test_a_record_from_before_there_were_nodes(tmp_path: Path) -> None:
    """It is of one node; and a side that is none is refused."""
    RECORD.save(tmp_path)
    path = tmp_path / "machine.json"
    old = json.loads(path.read_text())
    del old["allocator"], old["variant"]["pages"], old["variant"]["lists"]
    path.write_text(json.dumps(old))
    assert Record.load(tmp_path) == RECORD
    path.write_text(json.dumps({**old, "variant": {**old["variant"], "lists": "beside"}}))
    with pytest.raises(FormatError, match=r"not a record of a laboratory guest: lists is 'beside'"):
        Record.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"session": 1}', '{"regions": 1, "frames": []}', "\xff"])
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    (tmp_path / "swap.img").touch()
    line = refused("lab", "resume", tmp_path)
    assert "machine.json: not a record of a laboratory guest" in line


# ---- what is made of the guest's words ----


def test_what_became_of_a_region() -> None:
    """The same entry is fine; wrong frames are garbage; a split that stays is a change; data is looked at as well."""
    problems = scenario._region_problems
    garbage = {"block": "0x400", "pmd": "0x0000000006827063", "wrong": "500", "none": "12", "damaged": "0"}
    split = {"block": "0x400", "pmd": "0x0000000006827063", "wrong": "0", "none": "0", "damaged": "0"}
    assert list(problems(BEFORE, BEFORE)) == []
    (told,) = problems(BEFORE, garbage)
    assert told.startswith("direct map garbage")
    assert "512 of 512 entries wrong" in told
    (told,) = problems(BEFORE, split)
    assert told.startswith("direct map changed")
    (told,) = problems({**BEFORE, "wrong": "0"}, {**BEFORE, "wrong": "5"})
    assert "5 of 512 entries wrong" in told
    (told,) = problems(BEFORE, {**BEFORE, "damaged": "3"})
    assert "3 pages damaged" in told
    one_none = {**BEFORE, "level": "4k", "none": "1", "wrong": "0"}
    assert list(problems(one_none, one_none)) == []
    (told,) = problems(one_none, {**one_none, "none": "0"})
    assert told.startswith("direct map changed")
    (told,) = problems(one_none, {**one_none, "none": "13", "wrong": "499"})
    assert "511 of 512 entries wrong" in told


def test_what_a_kernel_said_of_an_image() -> None:
    """The kernel's words on its refusal; progress and greetings are left out."""
    log = (
        "[    3.1] PM: Image signature found, resuming\n[    3.2] PM: Image loading progress:  10%\n"
        "[    3.3] virtio_blk virtio0: something\n[    3.4] PM: hibernation: Image mismatch: memory size\n"
    )
    assert scenario._kernels_words(log) == "PM: hibernation: Image mismatch: memory size"
    assert scenario._kernels_words("") == "no word about an image"


# ---- the command line ----


@pytest.mark.parametrize(
    "words",
    [
        ("boot",), ("hibernate", "DIR"), ("hibernate", "DIR", "--dump-before", "--variant", "la57"), ("dump", "OUT"),
        ("golden", "DIR"), ("prove", "--kernel", "6.12"),
    ],
)  # fmt: skip
def test_dry_run_prints_the_command_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Not even QEMU or a kernel need be there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HIBERNAUT_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    result = hibernaut("lab", *words, "--dry-run")
    assert result.status == 0, result.err
    command = shlex.split(result.out)
    assert command[:4] == ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    assert "-no-reboot" in command
    assert "panic=-1" in command[command.index("-append") + 1]
    assert not any("tcp" in word or "hostfwd" in word for word in command)
    assert ("max" in command) is ("la57" in words)
    assert list(tmp_path.iterdir()) == []


def test_takeover_and_resume_have_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "chardev:gdb" in hibernaut("takeover", "--dry-run").out
    RECORD.save(tmp_path)
    (tmp_path / "swap.img").touch()
    (tmp_path / "spare.img").touch()
    assert f"{tmp_path}/swap.img" in hibernaut("lab", "resume", tmp_path, "--dry-run").out


def test_without_qemu_the_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any command that needs a program that is not here: one line, status 2; and the doctor names all of them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    line = refused("lab", "boot", "--cache", tmp_path / "cache")
    assert "is not installed" in line
    assert "apt-get install" in line
    result = hibernaut("lab", "doctor", "--json")
    assert result.status == 1
    assert result.document["ready"] is False
    (first, *_) = result.document["cures"]
    for package in ("qemu-system-x86", "busybox-static", "gcc", "e2fsprogs"):
        assert package in first.split()


@pytest.mark.parametrize("name", ["capstone", "drgn"])
def test_without_the_extra_nothing_is_booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A takeover that could not end does not begin."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *_: None if wanted == name else real(wanted))
    monkeypatch.setattr(
        "hibernaut.cli.lab.commands.Place.lab", lambda _: Lab(Kernel("6.1", "6.1.0", tmp_path, tmp_path))
    )
    line = refused("takeover")
    assert f"{name} is not installed" in line
    assert "pip install 'hibernaut[lab]'" in line


def test_the_doctor_is_content_with_what_is_there() -> None:
    """No cure for what is not missing."""
    there = [one for one in examine(Cache()) if one.there]
    assert cures(there) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("boot", "--kernel", "5.4"), "no kernel line '5.4'"),
        (("boot", "--variant", "x"), "no guest variant 'x'"),
        (("boot", "--accel", "xen"), "none of tcg, kvm, auto"),
        (("boot", "--kernel", "no-such-vmlinuz", "--modules", "x"), "no-such-vmlinuz: No such file"),
        (("boot", "--modules", "x"), "belongs to a kernel of your own"),
        (("resume", "nowhere"), "No such file"),
        (("prove", "--case", "nothing like it"), "no case is named like"),
        (("prove", "--write", "no/such/folder"), "no folder no/such to write to"),
        (("boot", "--region", "3m:above"), "'3m:above' is none of 2m:above"),
    ],
)
def test_wrong_words(words: tuple[str, ...], said: str) -> None:
    result = hibernaut("lab", *words)
    assert result.status == 2
    assert said in unwrapped(result.err)
    assert "Traceback" not in result.err


def unwrapped(text: str) -> str:
    """A message out of its box, in one line."""
    return " ".join(text.replace("│", " ").split())


def test_what_is_there_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's disks overwrite nothing."""
    (tmp_path / "mine").write_text("precious")
    monkeypatch.setattr("hibernaut.cli.lab.commands.Place.lab", lambda *_: None)
    for words, said in [
        (("lab", "hibernate", tmp_path), "is not empty"),
        (("lab", "prove", "--keep", tmp_path), "is not empty"),
        (("takeover", "--keep", tmp_path), "is not empty"),
        (("lab", "dump", tmp_path / "mine"), "is there already"),
    ]:
        result = hibernaut(*words)
        assert result.status == 2
        assert said in unwrapped(result.err)
    assert (tmp_path / "mine").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_the_table_of_proofs() -> None:
    """What did not pass is said to have failed, with its reason; a guest's words are not taken for markup."""
    row = {"kernel": "6.1", "release": "6.1.0", "case": "c", "must": "m", "seconds": 3}
    document = {
        "results": [
            {**row, "result": "PASS", "seen": "fine"},
            {**row, "case": "d", "result": "FAIL", "seen": "a|b `c` <d>"},
        ]
    }
    text = support_text(document)
    assert "1 of 2 pass" in text
    assert "6.1, d: a|b `c` <d>" in text
    assert "fine" not in text
    page = support_page(document)
    assert "| 6.1 | d | m | FAIL | 3 |" in page
    assert r"a\|b \`c\` \<d\>" in page
