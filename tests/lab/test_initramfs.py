# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests' initramfs: the archive as another program reads it, modules in an order that loads."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.lab.guest.initramfs import DIRECTORY, FILE, LINK, cpio, module_order


def module(path: Path, info: list[str]) -> None:
    """A kernel module as far as `.modinfo` goes, made by the C compiler, compressed as its name says."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler to make modules with")
    text = "".join(f"{line}\\0" for line in info)
    source = f'__attribute__((section(".modinfo"))) const char info[] = "{text}";'
    plain = path.with_suffix("").with_suffix(".o")
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-c", "-x", "c", "-o", plain, "-"], input=source, text=True, check=True)
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".xz": lzma.compress,
        ".zst": zstandard.compress,
        ".gz": gzip.compress,
        ".ko": bytes,
    }
    path.write_bytes(packers[path.suffix](plain.read_bytes()))


def test_another_program_unpacks_the_archive(tmp_path: Path) -> None:
    """Busybox's cpio sees the same folders, files and links, whatever their lengths modulo 4."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox to unpack with")
    files = {"a": (DIRECTORY, b""), "a/link": (LINK, b"../b"), "b": (FILE, b"x" * 5)}
    files |= {f"a/{'n' * length}": (FILE, bytes(range(length))) for length in range(1, 9)}
    subprocess.run([busybox, "cpio", "-i"], input=cpio(files), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a" / "link").readlink() == Path("../b")
    assert (tmp_path / "b").read_bytes() == b"xxxxx"
    assert all((tmp_path / "a" / ("n" * length)).read_bytes() == bytes(range(length)) for length in range(1, 9))


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    """`depends` and `softdep` of the modules themselves, in every compression; dashes are underscores."""
    drivers = tmp_path / "kernel" / "drivers"
    module(drivers / "virtio_blk.ko.xz", ["depends=virtio,virtio-ring"])
    module(drivers / "virtio_pci.ko", ["depends=virtio"])
    module(drivers / "virtio.ko.zst", ["depends=virtio_ring"])
    module(drivers / "virtio-ring.ko.gz", ["depends="])
    module(drivers / "ext4.ko", ["softdep=pre: crc32c post: other", "depends="])
    module(drivers / "crc32c.ko", [])
    module(drivers / "unwanted.ko", [])
    order = list(module_order(tmp_path))
    assert set(order) == {"virtio_ring", "virtio", "virtio_pci", "virtio_blk", "crc32c", "ext4"}
    for earlier, later in [
        ("virtio_ring", "virtio"),
        ("virtio", "virtio_pci"),
        ("virtio", "virtio_blk"),
        ("crc32c", "ext4"),
    ]:
        assert order.index(earlier) < order.index(later)


def test_a_built_in_module_is_not_missing(tmp_path: Path) -> None:
    """A module that modules.builtin names is not loaded."""
    module(tmp_path / "kernel" / "virtio_blk.ko", ["depends=virtio"])
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/virtio/virtio.ko\n")
    assert list(module_order(tmp_path)) == ["virtio_blk"]


def test_modules_that_need_each_other_end(tmp_path: Path) -> None:
    """A circle, which a broken package could have, is not an endless loop."""
    module(tmp_path / "kernel" / "virtio_blk.ko", ["depends=virtio_pci"])
    module(tmp_path / "kernel" / "virtio_pci.ko", ["depends=virtio_blk"])
    assert set(module_order(tmp_path)) == {"virtio_blk", "virtio_pci"}


def test_a_kernel_without_a_needed_module(tmp_path: Path) -> None:
    """A kernel that lacks a module which the guest needs is refused by its name."""
    (tmp_path / "kernel").mkdir()
    with pytest.raises(LabUnavailable, match="the kernel has no virtio_pci"):
        module_order(tmp_path)


def test_a_module_that_is_none(tmp_path: Path) -> None:
    """A file that is not ELF is not a kernel module."""
    path = tmp_path / "kernel" / "virtio_pci.ko"
    path.parent.mkdir()
    path.write_bytes(b"not an ELF file")
    with pytest.raises(FormatError, match=r"not a kernel module: .*virtio_pci\.ko$"):
        module_order(tmp_path)
