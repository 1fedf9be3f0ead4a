# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual disks whose blocks lie out of order, as a machine writes them, against what qemu-img makes of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.volumes import containers
from hibernaut.volumes.containers import container_of, open_container
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.luks import _check
from tests.volumes import nested

pytest.importorskip("dissect.hypervisor", reason="the extra disk is not installed")

SIZE = "40M"
WRITES = ((30 << 20, 17), (5 << 20, 34), (17 << 20, 51), (6 << 20, 68), (0, 85), (39 << 20, 102), (12_641_280, 119))
"""(byte, pattern): in an order in which no format puts neighbours side by side."""
WRITE_BYTES = 900 << 10


def written(folder: Path, kind: str, *options: str) -> Path:
    """Return a virtual disk to which a guest has written out of order."""
    path = folder / f"disk.{kind}"
    nested.run("qemu-img", "create", "-q", "-f", kind, *options, path, SIZE)
    for at, pattern in WRITES:
        nested.run("qemu-io", "-f", kind, "-c", f"write -P {pattern} {at} {WRITE_BYTES}", path)
    return path


def plain(path: Path, kind: str) -> bytes:
    """Return the disk's content, by qemu-img."""
    raw = path.with_suffix(".raw")
    nested.run("qemu-img", "convert", "-f", kind, "-O", "raw", path, raw)
    return raw.read_bytes()


def check(path: Path, content: bytes) -> None:
    """Every byte is right, read at once and in pieces that begin and end anywhere."""
    with ExitStack() as stack:
        file = stack.enter_context(open_plain(path))
        kind = container_of(file)
        assert kind is not None
        disk = open_container(file, kind, path, stack)
        assert disk.pread(0, disk.size_bytes)[: len(content)] == content
        rng = np.random.default_rng(5)
        for at, size in zip(rng.integers(0, len(content), 200), rng.integers(1, 3 << 20, 200), strict=True):
            assert disk.pread(int(at), int(size))[: len(content) - at] == content[at : at + size]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qcow2", ()),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
        ("vmdk", ("-o", "subformat=twoGbMaxExtentFlat")),
        ("vdi", ()),
        ("vpc", ()),
        ("vhdx", ("-o", "block_size=1M")),
    ],
)
def test_blocks_out_of_order(kind: str, options: tuple[str, ...], tmp_path: Path) -> None:
    """The disk as the guest saw it."""
    path = written(tmp_path, kind, *options)
    check(path, plain(path, kind))


@pytest.mark.parametrize("options", [("-c",), ("-c", "-o", "compression_type=zstd")])
def test_compressed_qcow2(options: tuple[str, ...], tmp_path: Path) -> None:
    """Both methods of compression."""
    path = written(tmp_path, "qcow2")
    packed = tmp_path / "packed.qcow2"
    nested.run("qemu-img", "convert", "-O", "qcow2", *options, path, packed)
    check(packed, plain(path, "qcow2"))


def test_a_backing_file_beside_a_qcow2_is_read(tmp_path: Path) -> None:
    """Bytes that the upper file lacks come from the lower one; one elsewhere is refused."""
    written(tmp_path, "qcow2")
    upper = tmp_path / "upper.qcow2"
    nested.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", upper)
    nested.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 20M 1M", upper)
    check(upper, plain(upper, "qcow2"))
    other = tmp_path / "elsewhere.qcow2"
    nested.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "disk.qcow2", "-F", "qcow2", other)
    with pytest.raises(FormatError, match="the rest of the disk is in another file"), ExitStack() as stack:
        open_container(stack.enter_context(open_plain(other)), "qcow2", other, stack)


def test_a_vhdx_with_more_blocks_than_it_can_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size of 2^62 is refused before a block is looked up."""
    disk = SimpleNamespace(size=1 << 62, block_size=1 << 20, has_parent=False)
    monkeypatch.setattr(containers, "need", lambda _name: SimpleNamespace(VHDX=lambda _file: disk))
    path = tmp_path / "disk.vhdx"
    path.write_bytes(b"vhdxfile".ljust(4096, b"\0"))
    with pytest.raises(FormatError, match="more than it has room to list"), ExitStack() as stack:
        open_container(stack.enter_context(open_plain(path)), "vhdx", path, stack)


@pytest.mark.parametrize(
    ("kdf", "stripes", "segments", "said"),
    [
        ({"memory": 1 << 30}, 4000, 1, "key slot 0 asks for 1073741824 KiB of memory"),
        ({"time": 1 << 20}, 4000, 1, "and 1048576 iterations"),
        ({"iterations": 1 << 40}, 4000, 1, "and 1099511627776 iterations"),
        ({}, 1 << 31, 1, "in 2147483648 stripes"),
        ({}, 4000, 2, "in the midst of a reencryption"),
    ],
)
def test_a_key_slot_that_asks_for_too_much(
    kdf: dict[str, int], stripes: int, segments: int, said: str, tmp_path: Path
) -> None:
    """It is refused before anything is computed."""
    slot = SimpleNamespace(kdf=SimpleNamespace(**kdf), key_size=64, af=SimpleNamespace(stripes=stripes))
    luks = SimpleNamespace(metadata=SimpleNamespace(segments=range(segments)), keyslots={0: slot})
    path = tmp_path / "luks"
    path.write_bytes(b"LUKS")
    with open_plain(path) as volume, pytest.raises(FormatError, match=said):
        _check(volume, luks)
