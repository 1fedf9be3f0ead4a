# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut doctor` on files of a report: its text, its document, its exit status, and files that cannot be used."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.damaged_images import damage
from tests.doctor.machines import CONFIG, HEALTHY, SWAPS, guest, log_file, root_folder, whole_log
from tests.swsusp import naive
from tests.swsusp.images import image_file


def test_a_healthy_root(tmp_path: Path) -> None:
    """Exit status 0, and no line with a reading or an advice."""
    result = hibernaut("doctor", "--root", root_folder(tmp_path / "root"), "--dmesg", log_file(tmp_path / "log"))
    assert result.status == 0
    assert not any(line.startswith(("X", "!")) for line in result.out.splitlines())
    assert "would fail" not in result.out


def test_the_document(tmp_path: Path) -> None:
    """The document validates, names the failing check, and has what was read; the status is 1."""
    root = root_folder(tmp_path / "root", {"/proc/swaps": SWAPS})
    result = hibernaut("doctor", "--root", root, "--json")
    assert result.status == 1
    assert result.document["outcome"] == "would fail"
    failing = {one["check"]: one for one in result.document["checks"] if one["outcome"] == "would fail"}
    assert set(failing) == {"swap", "resume-device"}
    assert failing["swap"]["read"] == [{"origin": f"{root}/proc/swaps", "value": "no area"}]


def test_maps_of_two_boots(tmp_path: Path) -> None:
    """Ranges that differ have a star, and the words that people search for are there."""
    new = log_file(tmp_path / "new", old="0x000000000ffd9fff", new="0x000000000ffc9fff")
    result = hibernaut("doctor", "--dmesg", whole_log(tmp_path / "old"), "--dmesg", new)
    assert result.status == 1
    assert "*  0x000000000ffca000-0x000000000ffd9fff  System RAM  -" in result.out
    assert '"PM: hibernation: Image mismatch: architecture specific data"' in result.out
    assert '"Hibernate inconsistent memory map detected!"' in result.out


def test_every_attached_file(tmp_path: Path) -> None:
    """Copies of files of /proc, packed ones too: their checks are known."""
    files = guest()["files"]
    words = []
    for option, text in (
        ("--cmdline", HEALTHY["/proc/cmdline"]),
        ("--swaps", files["/proc/swaps"]),
        ("--meminfo", files["/proc/meminfo"]),
        ("--config", CONFIG),
    ):
        path = tmp_path / option.strip("-")
        path.write_bytes(gzip.compress((text or "").encode()))
        words += [option, path]
    result = hibernaut("doctor", *words, "--json")
    assert result.status == 0
    known = {one["check"] for one in result.document["checks"] if one["outcome"] == "ok"}
    assert known == {"configuration", "nohibernate", "swap", "zram", "systemd-threshold", "swap-file", "resume-offset",
                     "resume-device"}  # fmt: skip


@pytest.mark.parametrize(
    ("option", "content", "what"),
    [
        ("--dmesg", b"root:x:0:0::/root:/bin/sh\n", "not a kernel log"),
        ("--dmesg", bytes(range(256)) * 10, "not a text file"),
        ("--dmesg", b"", "empty"),
        ("--journal", b"LPKSHHRH" + bytes(300), "a journal in systemd's own format"),
        ("--journal", b'{"MESSAGE": \n', "not valid JSON"),
        ("--swaps", b"MemTotal: 5 kB\n", "does not begin with the header"),
        ("--swaps", SWAPS.encode() + b"/dev/x partition 5\n", "a line has 3 fields"),
        ("--swaps", SWAPS.encode() + b"/dev/x partition 5 900 1\n", "900 of 5 KiB"),
        ("--meminfo", SWAPS.encode(), "has no MemTotal"),
        ("--cmdline", b"quiet\nsplash\n", "more than one line"),
        ("--config", b"CONFIG\n", "has no line CONFIG"),
    ],
)
def test_unusable_files_have_one_line(tmp_path: Path, option: str, content: bytes, what: str) -> None:
    """A file of another kind, damaged, or binary: what, where, and what to do next."""
    (tmp_path / "file").write_bytes(content)
    line = refused("doctor", option, tmp_path / "file")
    assert what in line
    assert str(tmp_path / "file") in line


def test_unusable_paths_have_one_line(tmp_path: Path) -> None:
    """A file that is absent, a folder, a pipe, and a root that is a file."""
    assert "No such file" in refused("doctor", "--dmesg", tmp_path / "absent")
    assert "not a regular file" in refused("doctor", "--swaps", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused("doctor", "--cmdline", tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    assert "not a folder" in refused("doctor", "--root", tmp_path / "file")
    assert "no such folder" in refused("doctor", "--root", tmp_path / "absent")


def outcomes(*words: object) -> dict[str, str]:
    """Return the outcome of each check."""
    return {one["check"]: one["outcome"] for one in hibernaut("doctor", *words, "--json").document["checks"]}


def test_images(tmp_path: Path) -> None:
    """A whole image, one that is torn, one that is used up, and one at another block than the next boot looks at."""
    image = image_file(tmp_path, layout=naive.Layout())
    (tmp_path / "cmdline").write_text("resume=/dev/sda2 resume_offset=8\n")
    found = outcomes("--image", image, "--cmdline", tmp_path / "cmdline")
    assert (found["image"], found["resume-offset"]) == ("ok", "would fail")
    damaged = bytearray(image.read_bytes())
    damaged[4096 * 3 + 100 : 4096 * 3 + 600] = bytes(500)
    (tmp_path / "torn").write_bytes(damaged)
    assert outcomes("--image", tmp_path / "torn")["image"] == "would fail"
    used = bytearray(image.read_bytes())
    used[4086:4096] = b"SWAPSPACE2"
    (tmp_path / "used").write_bytes(used)
    assert outcomes("--image", tmp_path / "used")["image"] == "warning"


def test_files_in_boot_against_the_time_of_hibernation(tmp_path: Path, golden: Golden) -> None:
    """A file is newer than the image from the second after on; one of another kernel, or for rescue, does not count."""
    pytest.importorskip("drgn", reason="the kernel's clock is read with drgn, which is not installed")
    image = golden("swap-6.1-lzo.img")
    machine = hibernaut("inspect", image, "--json").document["machine"]
    then = int(datetime.fromisoformat(machine["hibernated_at"]).timestamp())
    release = machine["kernel"]["release"]
    boot = tmp_path / "root/boot"
    boot.mkdir(parents=True)

    def found(**seconds_after: int) -> tuple[str, str]:
        for file in boot.iterdir():
            file.unlink()
        for name, after in seconds_after.items():
            path = boot / name.replace("RELEASE", release)
            path.touch()
            os.utime(path, (then + after, then + after))
        checks = hibernaut("doctor", "--root", tmp_path / "root", "--image", image, "--json").document["checks"]
        return next((one["outcome"], one["summary"]) for one in checks if one["check"] == "boot-files")

    kernel, initramfs = "vmlinuz-RELEASE", "initrd.img-RELEASE"
    assert found(**{kernel: -9, initramfs: 0})[0] == "ok"
    assert found(**{kernel: -9, initramfs: 1}) == (
        "warning", f"boot/initrd.img-{release} changed after the machine hibernated"
    )  # fmt: skip
    assert found(**{kernel: -9, "initrd.img-6.1.0-99-amd64": 5, "initramfs-RELEASE-fallback.img": 5})[0] == "ok"
    longer = {"initrd.img-RELEASE-rt": 5, "initramfs-RELEASE.1.img": 5}  # other kernels, whose names begin alike
    assert found(**{kernel: -9, **longer})[0] == "ok"
    assert found(**{kernel: -9, "initramfs-RELEASE.img": 5})[0] == "warning"
    assert found(**{"vmlinuz-linux": -9, "initramfs-linux.img": 5})[0] == "warning"
    assert found(**{"vmlinuz-6.1.0-99-amd64": 5})[0] == "not known"
    assert found()[0] == "not known"


def test_a_used_up_image_shows_why_it_was_refused(
    golden: Golden, golden_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    """The memory map and the size of memory are compared as with the image before it was used up; not without."""
    log, name = tmp_path / "log", "swap-6.12-lz4.img"
    whole_log(log)
    before = outcomes("--image", golden(name), "--dmesg", log)
    used = damage(golden_copy(name), "used up")
    without = outcomes("--image", used, "--dmesg", log)
    after = outcomes("--image", used, "--consumed", "--dmesg", log)
    compared = {"memory-map", "memory-size", "hardware-signature", "kernel", "direct-map"}
    assert {check for check in compared if without[check] == "not known"} == compared
    assert {check: after[check] for check in compared} == {check: before[check] for check in compared}
    assert after["memory-map"] == "would fail"
    assert (before["image"], without["image"], after["image"]) == ("ok", "warning", "warning")


def test_a_damaged_image_is_read_as_far_as_it_goes(golden_copy: Callable[[str], Path]) -> None:
    """It would fail, with the parts that are lost; a page table among them is not called torn."""
    path = damage(golden_copy("swap-6.1-lzo.img"), "list")
    found = {
        one["check"]: one for one in hibernaut("doctor", "--image", path, "--salvage", "--json").document["checks"]
    }
    assert found["image"]["outcome"] == "would fail"
    assert "624 of 625 units are whole" in {one["value"] for one in found["image"]["read"]}
    assert found["direct-map"]["outcome"] == "not known"
    assert "page tables of it are lost with a part of the image" in found["direct-map"]["summary"]
    torn = golden_copy("swap-6.1-low2m.img")
    assert outcomes("--image", damage(torn, "used up"), "--consumed")["direct-map"] == "would fail"
    assert "are for an image that --image names" in refused("doctor", "--consumed")


def test_zram_beside_a_partition(tmp_path: Path) -> None:
    """By files alone: zram first is a warning, unless the command line names the partition to resume from."""
    (tmp_path / "swaps").write_text(SWAPS + "/dev/zram0 partition 8388604 0 100\n/dev/sda2 partition 33554428 0 -2\n")
    (tmp_path / "quiet").write_text("quiet\n")
    (tmp_path / "resume").write_text("quiet resume=/dev/sda2\n")
    (tmp_path / "uuid").write_text("resume=UUID=5c31-7a4e\n")
    found = {
        name: outcomes("--swaps", tmp_path / "swaps", "--cmdline", tmp_path / name)
        for name in ("quiet", "resume", "uuid")
    }
    assert {name: one["zram"] for name, one in found.items()} == {"quiet": "warning", "resume": "ok", "uuid": "ok"}
    assert found["resume"]["resume-device"] == "ok"
    assert found["uuid"]["resume-device"] == "not known"
