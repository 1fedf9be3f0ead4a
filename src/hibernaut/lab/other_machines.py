# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of other architectures: Debian's kernels for them, which hibernate once under QEMU's emulation.

Their images are for the readers: hibernaut does not resume them. User space is one static program (guest/other.c),
built by a cross compiler; what it prints on the console is the record.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.guest.initramfs import DIRECTORY, FILE, GUEST_FOLDER, cpio, module_bytes, modules_with_dependencies
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import Archive
from hibernaut.lab.host.programs import program, run
from hibernaut.lab.record import IMAGE_NAME, LOG_NAME
from hibernaut.lab.variants import Swap
from hibernaut.lab.vm.disks import make_disk
from hibernaut.volumes.output import write_file

__all__ = ["OTHER_MACHINES", "OtherHibernated", "OtherMachine", "command_line", "hibernate_other", "said_by_guest"]

MEMORY_MIB = 256
DISK_MIB = 384
SECONDS = 600
"""A guest takes half a minute where nothing else runs."""
LAST_LINES = 6
INITRAMFS_NAME = "initramfs"


@dataclass(frozen=True)
class OtherMachine:
    """A machine of another architecture, and Debian's kernel for it.

    Attributes:
        name: its name here.
        architecture: architecture of Debian's packages.
        suite: the suite with the kernel.
        release: pattern of the kernel's releases.
        qemu: QEMU's program.
        hardware: words of its command line: machine and CPU.
        console: name of the console's device in the kernel.
        compiler: cross compiler for its user space.
        firmware: package with firmware newer than QEMU's own, and its file there; None if QEMU's will do.
    """

    name: str
    architecture: str
    suite: str
    release: str
    qemu: str
    hardware: tuple[str, ...]
    console: str
    compiler: str
    firmware: tuple[str, str] | None = None


def _arm64(name: str, flavour: str) -> OtherMachine:
    return OtherMachine(
        name,
        "arm64",
        "trixie",
        rf"6\.12\.\d+\+deb13-{flavour}",
        "qemu-system-aarch64",
        ("-machine", "virt", "-cpu", "cortex-a76"),  # older ones have no pages of 16 KiB
        "ttyAMA0",
        "aarch64-linux-gnu-gcc",
    )


OTHER_MACHINES = {
    machine.name: machine
    for machine in (
        _arm64("arm64", "arm64"),
        _arm64("arm64-16k", "arm64-16k"),
        OtherMachine(
            "i386",
            "i386",
            "bookworm",
            r"6\.1\.0-\d+-686-pae",
            "qemu-system-x86_64",
            ("-machine", "pc", "-cpu", "max"),
            "ttyS0",
            "i686-linux-gnu-gcc",
        ),
        OtherMachine(
            "riscv",
            "riscv64",
            "trixie",
            r"6\.12\.\d+\+deb13-riscv64",
            "qemu-system-riscv64",
            ("-machine", "virt", "-cpu", "rv64"),
            "ttyS0",
            "riscv64-linux-gnu-gcc",
            # Older ones do not keep the kernel out of their own memory, which swsusp_save then reads.
            ("opensbi", "usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"),
        ),
    )
}
"""By name. arm64-16k has pages of 16 KiB, i386 an `unsigned long` of 32 bits."""


@dataclass(frozen=True)
class OtherHibernated:
    """Outcome of a hibernation.

    Attributes:
        machine: name of the machine.
        hibernated: whether it hibernated.
        reason: why it did not, else empty.
        image: the disk with the swap area.
        release: release of the kernel.
        build: its build string, as `uname -v` prints it.
        page_bytes: size of a page.
        frames: page frames of the pages that contain their identity, in pages of the machine.
        seconds: time from boot to end.
    """

    machine: str
    hibernated: bool
    reason: str
    image: Path
    release: str
    build: str
    page_bytes: int
    frames: tuple[int, ...]
    seconds: float


def command_line(
    machine: OtherMachine, kernel: str, firmware: str | None, folder: Path, find: Callable[[str], str] = program
) -> list[str]:
    """Return QEMU's command line under `setpriv`, which ends it together with its parent.

    Args:
        machine: the machine.
        kernel: its kernel.
        firmware: its firmware; None for QEMU's own.
        folder: folder of its initramfs, its disk and its log.
        find: function that returns the path of a program, and raises LabUnavailable if it is not installed.
    """
    disk, log = (str(folder / name).replace(",", ",,") for name in (IMAGE_NAME, LOG_NAME))
    return [
        find("setpriv"), "--pdeathsig", "KILL", find(machine.qemu), *machine.hardware,
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", "tcg", "-smp", "1", "-m", str(MEMORY_MIB),
        *(["-bios", firmware] if firmware else []),
        "-kernel", kernel, "-initrd", str(folder / INITRAMFS_NAME),
        "-append", f"console={machine.console} ignore_loglevel no_console_suspend panic=-1 oops=panic",
        "-chardev", f"file,id=console,path={log}", "-serial", "chardev:console",
        "-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={disk}",
        "-device", "virtio-blk-pci,drive=disk",
    ]  # fmt: skip


def hibernate_other(
    machine: OtherMachine, folder: Path, cache: Cache | None = None, mirror: str | None = None
) -> OtherHibernated:
    """Boot a guest, let it hibernate, and return the outcome.

    Args:
        machine: the machine.
        folder: existing folder for its disk, its log and its initramfs.
        cache: cache for kernels and programs; the user's own if None.
        mirror: mirror of Debian's archive; as apt is configured if None.

    Raises:
        LabUnavailable: QEMU, the compiler or a package cannot be had.
        LabError: the guest does not end, or does not say what it did.
        OSError: as the system reports it.
    """
    store = cache or Cache()
    root, kernel = _kernel(store, machine, mirror)
    firmware = str(root / machine.firmware[1]) if machine.firmware else None
    (folder / INITRAMFS_NAME).write_bytes(_initramfs(store, machine, root))
    make_disk(folder / IMAGE_NAME, DISK_MIB, Swap.DISK)
    write_file(folder / LOG_NAME, b"")  # private; QEMU writes into it
    started = time.monotonic()
    _run_to_end(command_line(machine, str(kernel), firmware, folder), folder / LOG_NAME)
    log = (folder / LOG_NAME).read_text(errors="replace").replace("\r", "")
    return said_by_guest(machine.name, log, folder / IMAGE_NAME, time.monotonic() - started)


def said_by_guest(name: str, log: str, image: Path, seconds: float) -> OtherHibernated:
    """Return the outcome that a guest's console shows: power off after the image, and the lines of its program.

    Args:
        name: name of the machine.
        log: everything on its console.
        image: the disk.
        seconds: time from boot to end.

    Raises:
        LabError: the program did not get to its pages.
    """
    kernel = re.search(r"^hlab: kernel (\S+) (.+)$", log, re.MULTILINE)
    pages = re.search(r"^hlab: pages (\d+) (\d+)$", log, re.MULTILINE)
    frames = re.findall(r"^hlab: frame (\d+) 0x([0-9a-f]+)$", log, re.MULTILINE)
    last = tuple(line for line in log.splitlines() if line.strip())[-LAST_LINES:]
    if not kernel or not pages or [int(index) for index, _ in frames] != list(range(int(pages[1]))):
        raise LabError(f"the {name} guest did not get ready to hibernate", log=last)
    failed = re.search(r"^hlab: failed (.+)$", log, re.MULTILINE)
    saved = "PM: Image saving done" in log and "reboot: Power down" in log
    reason = failed[1] if failed else "" if saved else " / ".join(last[-2:])
    return OtherHibernated(
        name,
        saved and not failed,
        reason,
        image,
        kernel[1],
        kernel[2].strip(),
        int(pages[2]),
        tuple(int(pfn, 16) for _, pfn in frames),
        seconds,
    )


def _run_to_end(words: Sequence[str], log: Path) -> None:
    """Run QEMU until the guest powers off. Raises LabError if it fails, or does not end."""
    with subprocess.Popen(  # nosec B603 # QEMU, and words of the laboratory
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as qemu:
        try:
            _, errors = qemu.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            lines = tuple(log.read_text(errors="replace").splitlines())[-LAST_LINES:]
            raise LabError(f"the guest was still running after {SECONDS} s", log=lines) from None
        finally:
            qemu.kill()
    if qemu.returncode:
        raise LabError(f"QEMU failed: {errors.decode(errors='replace').strip()}")


def _kernel(cache: Cache, machine: OtherMachine, mirror: str | None) -> tuple[Path, Path]:
    """Return the folder with the unpacked packages of a machine, and its kernel. Raises LabUnavailable."""

    def make(folder: Path) -> None:
        archive = Archive(cache, machine.suite, mirror, machine.architecture)
        release = archive.newest_release(("linux-image-",), machine.release)
        archive.unpack([f"linux-image-{release}", *([machine.firmware[0]] if machine.firmware else [])], folder)

    with cache.locked():
        root = cache.folder(f"kernels/{machine.name}", make)
    for kernel in sorted(root.glob("boot/vmlinu[xz]-*")):
        return root, kernel
    raise LabUnavailable(f"no kernel in the packages of {machine.name}")


def _initramfs(cache: Cache, machine: OtherMachine, root: Path) -> bytes:
    """Return the initramfs: the program, and the modules in the order in which it loads them. Raises LabUnavailable."""
    source = GUEST_FOLDER / "other.c"

    def build(folder: Path) -> None:
        words = [program(machine.compiler), "-static", "-O2", "-Wall", "-Wextra", "-Werror"]
        run([*words, "-o", folder / "guest", source], doing="building the guest's program")

    digest = hashlib.sha256(machine.compiler.encode() + source.read_bytes()).hexdigest()[:16]
    with cache.locked():
        guest = (cache.folder(f"guest/{digest}", build) / "guest").read_bytes()
    (modules,) = root.glob("usr/lib/modules/*")
    order = modules_with_dependencies(modules, ("virtio_pci", "virtio_blk"))
    files = {"dev": (DIRECTORY, b""), "modules": (DIRECTORY, b""), "init": (FILE, guest)}
    for name, path in order.items():
        files[f"modules/{name}.ko"] = (FILE, module_bytes(path))
    files["modules/order"] = (FILE, "".join(f"{name}.ko\n" for name in order).encode())
    return gzip.compress(cpio(files), compresslevel=1, mtime=0)
