# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU process: its command line as data, a lifetime bound to its parent's, its monitor."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.host.programs import program
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.lab.vm.ram import SharedRam
from hibernaut.memory.declarations import CR4_LA57
from hibernaut.volumes.output import replacing

__all__ = ["Disk", "Hardware", "Qemu", "command_line", "planned_command", "qemu", "usable_accelerator"]

KVM_TRIAL_SECONDS = 5
CONNECT_SECONDS = 30
QUIT_SECONDS = 60
"""A killed process ends when its last thread has left the system call that it is in."""
ANSWER_SECONDS = 300
"""A dump of the largest guest takes some 10 s."""
LAST_LINES = 6


@dataclass(frozen=True)
class Disk:
    """A disk of the guest: vda, vdb, ... in order.

    Attributes:
        path: raw image.
        keep: whether the guest writes to the file. If not, it is opened for reading only, and writes go to a temporary
            file that QEMU has already deleted.
        base: byte of the file at which the disk begins, a multiple of 512.
    """

    path: Path
    keep: bool
    base: int = 0


@dataclass(frozen=True)
class Hardware:
    """A guest's machine and the kernel that it boots.

    Attributes:
        kernel: bzImage.
        initramfs: initramfs, None for none.
        parameters: kernel command line, without the console.
        disks: vda, vdb, ...
        memory_mib: RAM, MiB.
        levels: levels of paging that the CPU supports, 4 or 5; Linux uses as many as there are.
        accelerator: tcg or kvm.
        gdb: whether a debugger can be attached.
        shared_ram: whether `Qemu.ram` can read the guest's RAM.
        cpu_node: NUMA node of the CPU, 0 or 1, of two nodes that have the lower and the upper half of the RAM; None for
            a machine without nodes.
        cpus: number of CPUs.
        pluggable_mib: RAM that can be plugged in while it runs, MiB.
        state: file of `Qemu.save_state` with which it begins, in place of a boot; None to boot.
    """

    kernel: Path
    initramfs: Path | None
    parameters: str
    disks: tuple[Disk, ...] = ()
    memory_mib: int = 256
    levels: int = 4
    accelerator: str = "tcg"
    gdb: bool = False
    shared_ram: bool = False
    cpu_node: int | None = None
    cpus: int = 1
    pluggable_mib: int = 0
    state: Path | None = None

    @property
    def ram_mib(self) -> tuple[int, ...]:
        """Sizes of the parts of its RAM, MiB, by ascending address: one for each node."""
        return (self.memory_mib,) if self.cpu_node is None else (self.memory_mib // 2,) * 2


def command_line(
    hardware: Hardware, sockets: Path, find: Callable[[str], str] = program, ram: Sequence[str] = ()
) -> list[str]:
    """Return the command line: QEMU under `setpriv`, which ends it together with its parent, however that ends.

    Args:
        hardware: the machine.
        sockets: folder for its sockets and its console file; no network port is used.
        find: function that returns the path of a program, and raises LabUnavailable if it is not installed.
        ram: files for the parts of a shared RAM.
    """
    cpu = {"tcg": "max", "kvm": "host"}[hardware.accelerator] + (",la57=off" if hardware.levels == 4 else "")
    most_mib = hardware.memory_mib + hardware.pluggable_mib
    memory = f"{hardware.memory_mib}" + (f",slots=1,maxmem={most_mib}M" if hardware.pluggable_mib else "")
    words = [
        find("setpriv"), "--pdeathsig", "KILL", find("qemu-system-x86_64"),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", hardware.accelerator, "-cpu", cpu, "-smp", str(hardware.cpus), "-m", memory,
        "-kernel", str(hardware.kernel),
        "-append", f"console=ttyS0 ignore_loglevel no_console_suspend panic=-1 {hardware.parameters}".strip(),
        "-chardev", f"socket,id=monitor,path={sockets}/monitor,server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
        "-chardev", f"file,id=console,path={sockets}/console", "-serial", "chardev:console",
        "-chardev", f"socket,id=port,path={sockets}/port,server=on,wait=off", "-serial", "chardev:port",
    ]  # fmt: skip
    if hardware.shared_ram or hardware.cpu_node is not None:
        for node, size_mib in enumerate(hardware.ram_mib):
            kind = f"file,mem-path={ram[node]},share=on" if hardware.shared_ram else "ram"
            words += ["-object", f"memory-backend-{kind},id=node{node},size={size_mib}M"]
    if hardware.cpu_node is not None:
        for node in range(len(hardware.ram_mib)):
            words += ["-numa", f"node,nodeid={node},memdev=node{node}"]
        words += ["-numa", f"cpu,node-id={hardware.cpu_node},socket-id=0"]
    elif hardware.shared_ram:
        words += ["-machine", "pc,memory-backend=node0"]
    if hardware.initramfs:
        words += ["-initrd", str(hardware.initramfs)]
    for number, disk in enumerate(hardware.disks):
        snapshot = "off" if disk.keep else "on"
        path = str(disk.path).replace(",", ",,")
        base = f",offset={disk.base}" if disk.base else ""
        words += ["-drive", f"if=none,id=disk{number},format=raw,cache=unsafe,snapshot={snapshot},file={path}{base}"]
        words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    if hardware.state:
        words += ["-incoming", f"exec:cat {shlex.quote(str(hardware.state))}"]
    if hardware.gdb:
        words += ["-chardev", f"socket,id=gdb,path={sockets}/gdb,server=on,wait=off", "-gdb", "chardev:gdb"]
    return words


def planned_command(hardware: Hardware) -> list[str]:
    """Return the command line for display, QEMU installed or not; SOCKETS stands for a temporary folder."""
    return command_line(hardware, Path("SOCKETS"), str, [f"RAM{node}" for node in range(len(hardware.ram_mib))])


@dataclass(eq=False)
class Qemu:
    """A running QEMU.

    Attributes:
        process: its process.
        folder: folder with its sockets and its console file.
        ram: its RAM, as it is whenever a page is read, if the hardware shares it; else None.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    ram: SharedRam | None = None
    _monitor: Any = field(default=None, repr=False)
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def connect(self, name: str) -> socket.socket:
        """Connect to one of its sockets: monitor, port, gdb. Raises LabError if QEMU ends first or never listens."""
        end = time.monotonic() + CONNECT_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self.folder / name))
                return self._open.enter_context(connection)
            except OSError:
                connection.close()
                if not self.running or time.monotonic() > end:
                    raise LabError(f"QEMU did not start: {self._error_text()}") from None
                time.sleep(0.02)

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    def console(self) -> str:
        """Return everything that the guest's kernel has printed, carriage returns removed."""
        path = self.folder / "console"
        raw = path.read_bytes() if path.exists() else b""
        return raw.decode("utf-8", "replace").replace("\r", "")

    def last_log_lines(self, lines: int = LAST_LINES) -> tuple[str, ...]:
        """Return the last lines on the console."""
        return tuple(line for line in self.console().splitlines() if line.strip())[-lines:]

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a monitor command (QMP) and return its answer. Raises LabError if QEMU refuses it or does not answer."""
        try:
            if self._monitor is None:
                connection = self.connect("monitor")
                connection.settimeout(ANSWER_SECONDS)
                self._monitor = self._open.enter_context(connection.makefile("rw"))
                self._answer()
                self.execute("qmp_capabilities")
            self._monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self._monitor.flush()
            return self._answer()
        except TimeoutError:
            raise LabError(
                f"QEMU's monitor did not answer {command} within {ANSWER_SECONDS} s", log=self.last_log_lines()
            ) from None

    def registers(self) -> dict[str, int]:
        """Return the CPU's registers of 32 bits and more, by their names in capitals: RIP, RSP, CR3, CR4, ...

        Raises:
            LabError: QEMU does not answer.
        """
        printed = self.execute("human-monitor-command", **{"command-line": "info registers"})
        return {name: int(value, 16) for name, value in re.findall(r"\b([A-Z][A-Z0-9]+) ?=([0-9a-f]{8,16})\b", printed)}

    def paging(self) -> tuple[int, int]:
        """Return CR3 of the CPU and its levels of paging, 4 or 5. Raises LabError if QEMU does not answer."""
        registers = self.registers()
        return registers["CR3"], 5 if registers["CR4"] & CR4_LA57 else 4

    def dump(self, path: Path) -> None:
        """Dump RAM and CPU state to an ELF core (`dump-guest-memory`), complete or not at all.

        QEMU gets the name of a descriptor, so the file has the mode and the owner that `replacing` gives it.

        Raises:
            LabError: QEMU refuses.
            OSError: as the system reports it.
        """
        with replacing(path) as fd:
            self.execute("dump-guest-memory", paging=False, protocol=f"file:/proc/{os.getpid()}/fd/{fd}")

    def save_state(self, path: Path) -> None:
        """Stop the machine, and write its RAM and its devices' state to a file, with which others begin.

        The contents of its disks are not part of it. The file holds the machine's memory, so it is private.

        Raises:
            LabError: QEMU refuses, or fails to write it.
            OSError: as the system reports it.
        """
        self.execute("stop")
        with replacing(path) as fd:
            self.execute("migrate", uri=f"exec:cat > /proc/{os.getpid()}/fd/{fd}")
            self._wait_for_state("migrate")

    def continue_from_state(self) -> None:
        """Wait until the state with which the machine begins is read, and let it run. Raises LabError."""
        self._wait_for_state("-incoming")
        self.execute("cont")

    def _wait_for_state(self, doing: str) -> None:
        end = time.monotonic() + ANSWER_SECONDS
        while (status := self.execute("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > end:
                raise LabError(f"QEMU: {doing}: {status}: {self._error_text()}", log=self.last_log_lines())
            time.sleep(0.01)

    def wait(self, seconds: float) -> int:
        """Wait for the end of QEMU and return its exit status. Raises LabError if it keeps running."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabError(f"the guest was still running after {seconds:.0f} s", log=self.last_log_lines()) from None

    def end(self) -> None:
        """Kill QEMU and close all connections to it. Raises LabError if its process does not end."""
        self.process.kill()
        try:
            self.wait(QUIT_SECONDS)
        finally:
            with suppress(OSError):  # unsent data goes with it
                self._open.close()

    def _answer(self) -> Any:
        for line in self._monitor:
            said = json.loads(line)
            if "error" in said:
                raise LabError(f"QEMU's monitor: {said['error'].get('desc')}")
            if "return" in said or "QMP" in said:
                return said.get("return")
        raise LabError("QEMU ended", log=self.last_log_lines())

    def _error_text(self) -> str:
        return (self.folder / "errors").read_text(errors="replace").strip() or f"exit status {self.process.poll()}"


@contextmanager
def qemu(hardware: Hardware) -> Iterator[Qemu]:
    """Start a guest and yield it; on leaving, QEMU is killed and its sockets are removed.

    Raises:
        LabUnavailable: QEMU is not installed.
        LabError: QEMU does not start.
    """
    ram = SharedRam(hardware.ram_mib) if hardware.shared_ram else None
    try:
        with temporary_folder("lab") as folder:
            with (folder / "errors").open("wb") as errors:
                process = subprocess.Popen(  # nosec B603 # QEMU, and words of the laboratory
                    command_line(hardware, folder, ram=ram.paths if ram else ()),
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=ram.fds if ram else (),
                )
            guest = Qemu(process, folder, ram)
            try:
                yield guest
            finally:
                guest.end()
    finally:
        if ram:
            ram.close()


def usable_accelerator(wish: str, kernel: Path) -> str:
    """Return tcg or kvm; kvm only if a trial boot prints something soon, since a /dev/kvm that hangs is common.

    Args:
        wish: tcg, kvm, or auto for kvm if it works and tcg otherwise.
        kernel: bzImage for the trial.

    Raises:
        LabUnavailable: `wish` is kvm, and the trial boot prints nothing.
    """
    if wish == "tcg" or (Path("/dev/kvm").exists() and _kvm_works(kernel)):
        return "kvm" if wish != "tcg" else "tcg"
    if wish == "kvm":
        raise LabUnavailable("KVM does not work on this machine: a trial boot printed nothing", cure="--accel tcg")
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
