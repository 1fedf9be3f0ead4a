# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks as Debian's own tools make them, with an image inside that the tests' own writer laid out.

Each tool is a witness that is not ours: what it puts around the image has to be taken off again. A tool that is not
installed skips the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.swsusp import naive
from tests.swsusp.images import PAGES

PAGE = 4096
PASSPHRASE = b"correct horse"
AREA_BYTES = 2 << 20
"""Size of the swap areas and swap files."""
IMAGE = naive.build(PAGES, naive.Layout(shuffle_seed=7)).ljust(AREA_BYTES, b"\0")
"""A swap area with an image."""

ATTEMPTS = 5
BUSY = b"Unable to get accurate CPU usage"
"""Message of qemu-img on a busy machine, when it measures how long a key of LUKS takes."""


def tool(name: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*words: str | Path, given: bytes | None = None) -> str:
    """Run a program and return what it printed."""
    command = [tool(str(words[0])), *map(str, words[1:])]
    for _ in range(ATTEMPTS):
        done = subprocess.run(command, input=given, capture_output=True, check=False)
        if BUSY not in done.stderr:
            break
    assert not done.returncode, (command, done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def put(disk: Path, at: int, data: bytes) -> None:
    """Write bytes into a disk, which grows as needed."""
    with disk.open("r+b" if disk.exists() else "w+b") as file:
        file.seek(at)
        file.write(data)


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[str]:
    """Yield a loop device on a file, or skip the test."""
    if os.geteuid():
        pytest.skip("loop devices need root")
    done = subprocess.run([tool("losetup"), "--find", "--show", *options, path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.decode(errors='replace').strip()}")
    loop = done.stdout.decode().strip()
    try:
        yield loop
    finally:
        run("losetup", "--detach", loop)


def partitioned(disk: Path, label: str, parts: list[bytes], *, sector_bytes: int = 512) -> Path:
    """Make a disk with a partition for each content, 1 MiB apart, by sfdisk. A logical one for an MBR."""
    sectors = [-(-len(part) // sector_bytes) for part in parts]
    starts: list[int] = []
    at = (2 << 20) // sector_bytes
    for count in sectors:
        starts.append(at)
        at = -(-(at + count) // 2048) * 2048 + 2048
    disk.write_bytes(b"")
    os.truncate(disk, at * sector_bytes + (2 << 20))
    lines = [f"label: {label}"]
    if label == "dos":
        lines.append(f"start=2048, size={at}, type=5")
        numbers = range(5, 5 + len(parts))
    else:
        numbers = range(1, 1 + len(parts))
    kind = "82" if label == "dos" else "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
    for number, start, count in zip(numbers, starts, sectors, strict=True):
        lines.append(f"{disk}{number} : start={start}, size={count}, type={kind}")
    script = "\n".join(lines).encode()
    if sector_bytes == 512:
        run("sfdisk", "--quiet", disk, given=script)
    else:
        with loop_device(disk, "--sector-size", str(sector_bytes)) as loop:
            run(
                "sfdisk",
                "--quiet",
                "--no-tell-kernel",
                loop,
                given=script.replace(str(disk).encode(), f"{loop}p".encode()),
            )
    for start, part in zip(starts, parts, strict=True):
        put(disk, start * sector_bytes, part)
    return disk


def in_container(raw: Path, kind: str, *options: str) -> Path:
    """Return a virtual disk with the content of a raw one, by qemu-img."""
    target = raw.with_name(f"{raw.name}.{kind}")
    run("qemu-img", "convert", "-O", {"vhd": "vpc"}.get(kind, kind), *options, raw, target)
    return target


def in_e01(raw: Path) -> Path:
    """Return an E01 image of a raw disk in several segments, by ewfacquire."""
    target = raw.with_name("evidence")
    source = raw.with_suffix(".dd")
    raw.rename(source)
    run("ewfacquire", "-u", "-q", "-t", target, "-S", str(1 << 20), "-c", "deflate:none", source)
    return target.with_name("evidence.E01")


def encrypted_1(raw: Path) -> Path:
    """Return a LUKS1 volume with the content of a raw one, by qemu-img."""
    target = raw.with_name(f"{raw.name}.luks")
    secret = raw.with_name("secret")
    secret.write_bytes(PASSPHRASE)
    words = ["--object", f"secret,id=s,file={secret}", "-O", "luks", "-o", "key-secret=s,iter-time=10"]
    run("qemu-img", "convert", *words, raw, target)
    return target


def encrypted_2(raw: Path) -> Path:
    """Return a LUKS2 volume (argon2id) with the content of a raw one, by cryptsetup."""
    target = raw.with_name(f"{raw.name}.luks2")
    shutil.copy(raw, target)
    os.truncate(target, raw.stat().st_size + (32 << 20))
    run("cryptsetup", "reencrypt", "-q", "--encrypt", "--type", "luks2", "--reduce-device-size", "32M",
        "--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--key-file", "-", target,
        given=PASSPHRASE)  # fmt: skip
    return target


def logical_volumes(folder: Path, disks: int, commands: list[list[str]]) -> list[Path]:
    """Return physical volumes of a group `vg` with extents of 1 MiB, after some commands of LVM.

    In a command, @0 is the first volume's device. Nothing is activated, so no device-mapper is needed.
    """
    paths = [folder / f"pv{number}" for number in range(disks)]
    with ExitStack() as stack:
        loops: list[str] = []
        for path in paths:
            path.write_bytes(b"")
            os.truncate(path, 16 << 20)
            loops.append(stack.enter_context(loop_device(path)))
        accepted = ",".join(f'"a|^{loop}$|"' for loop in loops)
        configuration = (
            f'devices {{ filter=[{accepted},"r|.*|"] use_devicesfile=0 }} '
            "activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
        )
        for name, *words in [["pvcreate", *loops], ["vgcreate", "-s", "1M", "vg", *loops], *commands]:
            given = [loops[int(word[1:])] if word.startswith("@") else word for word in words]
            run(name, "--driverloaded", "n", "--config", configuration, *given)
    return paths


def with_swap_file(folder: Path, kind: str, path: str) -> Path:
    """Return a file system, made by its own tool, with an image in a swap file that is where the tool has put it."""
    marks = [os.urandom(32) for _ in range(AREA_BYTES // PAGE)]
    target = with_file(folder, kind, path, b"".join(mark.ljust(PAGE, b"\xaa") for mark in marks))
    content = target.read_bytes()
    places = [content.find(mark) for mark in marks]
    block = places[0] // PAGE
    assert places == [(block + number) * PAGE for number in range(len(marks))], "the file is not contiguous"
    device = naive.build(PAGES, naive.Layout(header_block=block, first_block=block + 1, shuffle_seed=5))
    put(target, block * PAGE, device[block * PAGE :].ljust(AREA_BYTES, b"\0"))
    return target


def with_file(folder: Path, kind: str, path: str, data: bytes) -> Path:
    """Return a file system, made by its own tool, with one file."""
    tree = folder / f"tree-{kind}"
    file = tree / path.lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    target = folder / f"{kind}.fs"
    target.write_bytes(b"")
    os.truncate(target, {"ext4": 16, "xfs": 300, "btrfs": 128}[kind] << 20)
    if kind == "ext4":
        run("mkfs.ext4", "-q", "-b", "4096", "-d", tree, target)
    elif kind == "btrfs":
        run("mkfs.btrfs", "-q", "--rootdir", tree, target)
    else:
        names = path.lstrip("/").split("/")
        lines = ["/dev/null", "0 0", "d--755 0 0"]
        lines += [f"{name} d--755 0 0" for name in names[:-1]]
        lines += [f"{names[-1]} ---600 0 0 {file}", *["$"] * len(names)]
        prototype = folder / "prototype"
        prototype.write_text("\n".join(lines) + "\n")
        run("mkfs.xfs", "-q", "-p", prototype, target)
    return target
