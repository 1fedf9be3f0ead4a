# SPDX-License-Identifier: GPL-2.0-or-later
"""An initramfs that dracut makes with the verifier's module: in a guest, a whole image resumes, a changed one does not.

The kernel line has `resume=`, so dracut's own unit resumes; an initramfs without the module is the control.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hibernaut.errors import LabError
from hibernaut.lab.doctored import guest_variant
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME, GuestRecord
from hibernaut.lab.vm.disks import copy_disk
from hibernaut.lab.vm.port import Port
from hibernaut.lab.vm.qemu import Disk, qemu
from tests.lab.sealed_changes import KERNEL_LOOKS
from tests.lab.sealed_guest import MEMORY_MIB, hibernate_sealed, order_of
from tests.sealing.verifier_file import FOLDER, verifier_file

SWITCH = "HIBERNAUT_DRACUT"
"""Folder with a Debian root, to which files are added: `debootstrap --variant=minbase --include=dracut-core,systemd,
systemd-sysv,udev,dbus,kmod,python3,cpio,binutils,procps bookworm FOLDER`."""
pytestmark = pytest.mark.skipif(
    SWITCH not in os.environ, reason=f"minutes of guests: {SWITCH}=ROOT, a root with dracut"
)
SECONDS = 600
NO_RESUME = "hibernaut: not resuming: "
DRACUT = (
    'mount -t proc proc "$1/proc"; mount -t tmpfs tmp "$1/tmp"; '
    'chroot "$1" sh -c "depmod $2 && dracut --no-hostonly --force --kver $2 --drivers \'virtio_blk virtio_pci\' '
    "--omit 'kernel-modules kernel-modules-extra drm i18n kernel-network-modules $3' /tmp/out.img\" >&2; "
    'cat "$1/tmp/out.img"'
)


@dataclass(frozen=True)
class Made:
    """A guest that has hibernated, and two initramfs.

    Attributes:
        folder: folder with its disks.
        record: its record.
        verifying: initramfs with the module.
        plain: initramfs without it.
    """

    folder: Path
    record: GuestRecord
    verifying: Path
    plain: Path


@pytest.fixture(scope="module")
def made(lab_61: Lab, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Let a guest hibernate, seal its image, and make the two initramfs in the root."""
    folder, root = tmp_path_factory.mktemp("dracut"), Path(os.environ[SWITCH])
    record = hibernate_sealed(lab_61, folder)
    release = lab_61.kernel.release
    modules = root / "usr/lib/modules" / release
    if not modules.exists():
        shutil.copytree(lab_61.kernel.modules, modules, symlinks=True)
    module = root / "usr/lib/dracut/modules.d/91hibernaut-verify"
    shutil.rmtree(module, ignore_errors=True)
    shutil.copytree(FOLDER / "dracut/91hibernaut-verify", module)
    for name in ("usr/lib/hibernaut", "etc/hibernaut"):
        (root / name).mkdir(parents=True, exist_ok=True)
    verifier_file(root / "usr/lib/hibernaut")
    shutil.copy(FOLDER / "resume", root / "usr/lib/hibernaut/resume")
    shutil.copy(folder / "key.pub", root / "etc/hibernaut/seal.pub")
    (root / "etc/hibernaut/verify.conf").write_text("DEVICE=/dev/vda\nKEY=/etc/hibernaut/seal.pub\n")
    for name, omitted in (("verifying", ""), ("plain", "hibernaut-verify")):
        command = ["unshare", "--mount", "sh", "-ec", DRACUT, "sh", str(root), release, omitted]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:].decode()
        assert (b"Including module: hibernaut-verify" in done.stderr) == (name == "verifying")
        (folder / name).write_bytes(done.stdout)
    return Made(folder, record, folder / "verifying", folder / "plain")


@dataclass(frozen=True)
class Booted:
    """The outcome of a boot.

    Attributes:
        session: session that answered: that of the resumed guest; None if none did.
        console: everything that was printed.
        writes: number of writes to the disk of the image.
    """

    session: str | None
    console: str
    writes: int


def boot(lab: Lab, made: Made, initramfs: Path, disk: Path, is_over: Callable[[str], bool]) -> Booted:
    """Boot a machine with an initramfs until the guest has resumed, or what it prints says that it will not."""
    disks = [Disk(one, keep=False) for one in (disk, made.folder / SPARE_NAME, made.folder / "python.img")]
    hardware = lab.hardware(guest_variant(MEMORY_MIB), made.folder, disks, "fresh", gdb=False)
    words = f"{hardware.parameters} resume=/dev/vda root=/dev/vdc rd.shell=0 systemd.journald.forward_to_console=1"
    with qemu(replace(hardware, initramfs=initramfs, parameters=words)) as machine:
        port, session = Port(machine), None
        for _ in range(SECONDS):
            try:
                session = port.reply(None, 1, "resuming").session
                break
            except LabError:
                if is_over(machine.console()):
                    break
        (stats,) = [one["stats"] for one in machine.execute("query-blockstats") if one["device"] == "disk0"]
        return Booted(session, machine.console(), int(stats["wr_operations"]))


def changed_disk(made: Made) -> Path:
    """Return the disk with one byte of the image's last block changed, which the kernel's CRC-32 does not cover."""
    path = made.folder / "changed.img"
    copy_disk(made.folder / IMAGE_NAME, path)
    with path.open("r+b") as file:
        file.seek(order_of(path).entries[-1] * 4096 + 4095)
        file.write(b"X")
    return path


def test_a_whole_image_resumes_after_it_was_verified(lab_61: Lab, made: Made) -> None:
    """The verifier's line comes before the kernel's first one about an image, and the guest answers."""
    found = boot(lab_61, made, made.verifying, made.folder / IMAGE_NAME, lambda text: NO_RESUME in text)
    assert found.session == made.record.session, found.console[-3000:]
    verified = found.console.index("hibernaut: /dev/vda: whole: a kernel reads")
    for words in KERNEL_LOOKS:
        assert verified < found.console.index(words)


def test_a_changed_image_is_stopped_before_the_kernel_looks(lab_61: Lab, made: Made) -> None:
    """The boot continues to its root without any message of the kernel about an image, and without a write."""
    found = boot(
        lab_61, made, made.verifying, changed_disk(made), lambda text: "/sysroot" in text and NO_RESUME in text
    )
    assert found.session is None
    assert "hibernaut: not resuming: /dev/vda: touched: block" in found.console, found.console[-3000:]
    assert not any(words in found.console for words in KERNEL_LOOKS)
    assert found.writes == 0


def test_without_the_module_the_kernel_gets_the_changed_image(lab_61: Lab, made: Made) -> None:
    """The control: dracut's own unit resumes from it, since a byte behind the last unit is in no checksum."""
    found = boot(lab_61, made, made.plain, changed_disk(made), lambda _: False)
    assert found.session == made.record.session, found.console[-3000:]
    assert all(words in found.console for words in KERNEL_LOOKS)
