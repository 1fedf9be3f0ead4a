# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU process: its command line as data, its life bound to ours, its monitor."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.host.programs import program
from hibernaut.volumes.output import replacing

__all__ = ["Disk", "Hardware", "Qemu", "command_line", "command_text", "qemu", "usable_accelerator"]

KVM_TRIAL_SECONDS = 5
CONNECT_SECONDS = 30
QUIT_SECONDS = 5
LAST_LINES = 6


@dataclass(frozen=True)
class Disk:
    """A disk of the guest: vda, vdb, ... in order.

    Attributes:
        path: a raw image.
        keep: whether what the guest writes is kept. If not, the file is opened for reading only and writes go to a
            temporary file that QEMU has already deleted.
    """

    path: Path
    keep: bool


@dataclass(frozen=True)
class Hardware:
    """A guest's machine and what it boots.

    Attributes:
        kernel: a bzImage.
        initramfs: its initramfs, if it is to have one.
        parameters: the kernel's command line, without the console.
        disks: vda, vdb, ...
        memory_mib: RAM, MiB.
        levels: levels of paging that the CPU offers, 4 or 5 (Linux uses what there is).
        accelerator: tcg or kvm.
        gdb: whether a debugger can be attached.
        cpu_node: of two NUMA nodes, which have half of the RAM each, the lower one and the upper one, the one that the
            CPU is on: 0 or 1. None for a machine without nodes.
    """

    kernel: Path
    initramfs: Path | None
    parameters: str
    disks: tuple[Disk, ...] = ()
    memory_mib: int = 256
    levels: int = 4
    accelerator: str = "tcg"
    gdb: bool = False
    cpu_node: int | None = None


def command_line(hardware: Hardware, sockets: Path, find: Callable[[str], str] = program) -> list[str]:
    """What is run: QEMU under `setpriv`, so that it dies with us, whatever kills us.

    Args:
        hardware: the machine.
        sockets: the folder for its sockets and its console's file; no port of the network is used.
        find: gives the path of a program. Raises LabUnavailable if there is none.
    """
    cpu = {"tcg": "max", "kvm": "host"}[hardware.accelerator] + (",la57=off" if hardware.levels == 4 else "")
    words = [
        find("setpriv"), "--pdeathsig", "KILL", find("qemu-system-x86_64"),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", hardware.accelerator, "-cpu", cpu, "-smp", "1", "-m", str(hardware.memory_mib),
        "-kernel", str(hardware.kernel),
        "-append", f"console=ttyS0 ignore_loglevel no_console_suspend panic=-1 {hardware.parameters}".strip(),
        "-chardev", f"socket,id=monitor,path={sockets}/monitor,server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
        "-chardev", f"file,id=console,path={sockets}/console", "-serial", "chardev:console",
        "-chardev", f"socket,id=port,path={sockets}/port,server=on,wait=off", "-serial", "chardev:port",
    ]  # fmt: skip
    if hardware.cpu_node is not None:
        for node in (0, 1):
            words += ["-object", f"memory-backend-ram,id=node{node},size={hardware.memory_mib // 2}M"]
            words += ["-numa", f"node,nodeid={node},memdev=node{node}"]
        words += ["-numa", f"cpu,node-id={hardware.cpu_node},socket-id=0"]
    if hardware.initramfs:
        words += ["-initrd", str(hardware.initramfs)]
    for number, disk in enumerate(hardware.disks):
        snapshot = "off" if disk.keep else "on"
        path = str(disk.path).replace(",", ",,")
        words += ["-drive", f"if=none,id=disk{number},format=raw,cache=unsafe,snapshot={snapshot},file={path}"]
        words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    if hardware.gdb:
        words += ["-chardev", f"socket,id=gdb,path={sockets}/gdb,server=on,wait=off", "-gdb", "chardev:gdb"]
    return words


def command_text(hardware: Hardware) -> str:
    """The command line to look at, whether QEMU is here or not; SOCKETS stands for a temporary folder."""
    return shlex.join(command_line(hardware, Path("SOCKETS"), str))


@dataclass
class Qemu:
    """A running QEMU.

    Attributes:
        process: it.
        folder: its sockets and console.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    _monitor: Any = field(default=None, repr=False)
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def connect(self, name: str) -> socket.socket:
        """A connection to one of its sockets: monitor, port, gdb. Raises LabError if QEMU ends before."""
        end = time.monotonic() + CONNECT_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self.folder / name))
                return self._open.enter_context(connection)
            except OSError:
                connection.close()
                if not self.running or time.monotonic() > end:
                    raise LabError(f"QEMU did not start: {self._words()}") from None
                time.sleep(0.02)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def console(self) -> str:
        """All that the guest's kernel has printed, terminal controls removed."""
        path = self.folder / "console"
        raw = path.read_bytes() if path.exists() else b""
        return raw.decode("utf-8", "replace").replace("\r", "")

    def last_words(self, lines: int = LAST_LINES) -> tuple[str, ...]:
        """The last lines on the console."""
        return tuple(line for line in self.console().splitlines() if line.strip())[-lines:]

    def execute(self, command: str, **arguments: object) -> Any:
        """A command of the monitor (QMP), and its answer. Raises LabError if it is refused."""
        if self._monitor is None:
            self._monitor = self._open.enter_context(self.connect("monitor").makefile("rw"))
            self._answer()
            self.execute("qmp_capabilities")
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._monitor.flush()
        return self._answer()

    def dump(self, path: Path) -> None:
        """RAM and CPU state as an ELF core (QEMU's `dump-guest-memory`), whole or not at all.

        QEMU gets the name of a descriptor, so the file has the mode and the owner that `replacing` gives it.

        Raises:
            LabError: QEMU refuses.
            OSError: as the system reports it.
        """
        with replacing(path) as fd:
            self.execute("dump-guest-memory", paging=False, protocol=f"file:/proc/{os.getpid()}/fd/{fd}")

    def wait(self, seconds: float) -> int:
        """Wait for its end and give its exit status. Raises LabError if it goes on."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"the guest was still running after {seconds:.0f} s", log=self.last_words()) from None

    def end(self) -> None:
        """Kill it and close all connections to it."""
        self.process.kill()
        self.process.wait()
        with suppress(OSError):  # what was not yet sent to it is lost, as it should be
            self._open.close()

    def _answer(self) -> Any:
        for line in self._monitor:
            said = json.loads(line)
            if "error" in said:
                raise LabError(f"QEMU's monitor: {said['error'].get('desc')}")
            if "return" in said or "QMP" in said:
                return said.get("return")
        raise LabError("QEMU ended", log=self.last_words())

    def _words(self) -> str:
        return (self.folder / "errors").read_text(errors="replace").strip() or f"exit status {self.process.poll()}"


@contextmanager
def qemu(hardware: Hardware) -> Iterator[Qemu]:
    """A running guest; on leaving, however, it is dead and its sockets are gone.

    Raises:
        LabUnavailable: no QEMU here.
        LabError: it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="hibernaut-lab-"))
    try:
        with (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(
                command_line(hardware, folder), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        guest = Qemu(process, folder)
        try:
            yield guest
        finally:
            guest.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def usable_accelerator(wish: str, kernel: Path) -> str:
    """tcg, or kvm if it works: a trial boot must print something soon (a /dev/kvm that hangs is common).

    Args:
        wish: tcg, kvm or auto (kvm if it works, else tcg).
        kernel: a bzImage for the trial.

    Raises:
        LabUnavailable: kvm was asked for and does not work.
    """
    if wish == "tcg" or (Path("/dev/kvm").exists() and _kvm_works(kernel)):
        return "kvm" if wish != "tcg" else "tcg"
    if wish == "kvm":
        raise LabUnavailable("KVM does not work here: a trial boot printed nothing", cure="--accel tcg")
    return "tcg"


def _kvm_works(kernel: Path) -> bool:
    trial = Hardware(kernel, None, "earlyprintk=ttyS0", accelerator="kvm")
    with qemu(trial) as guest:
        end = time.monotonic() + KVM_TRIAL_SECONDS
        while guest.running and time.monotonic() < end:
            if "Linux version" in guest.console():
                return True
            time.sleep(0.05)
        return "Linux version" in guest.console()
