# SPDX-License-Identifier: GPL-2.0-or-later
"""Images inside disks as real machines nest them: `find` lists each, and what it prints opens it."""

from __future__ import annotations

import re
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hibernaut.volumes.files import open_plain
from hibernaut.volumes.lvm import logical_volumes, physical_volume
from tests.cli.run import hibernaut, refused
from tests.swsusp.images import PAGES, plain
from tests.volumes import nested
from tests.volumes.disks import mbr_entry, write_table

pytest.importorskip("dissect.volume", reason="the extra disk is not installed")


def plain_area(folder: Path) -> Path:
    """A swap area, nothing around it."""
    path = folder / "area"
    path.write_bytes(nested.IMAGE)
    return path


def in_logical_partition(folder: Path) -> Path:
    """The second logical partition of an MBR."""
    return nested.partitioned(folder / "disk", "dos", [bytes(8192), nested.IMAGE])


def in_gpt(folder: Path) -> Path:
    """A partition of a GPT."""
    return nested.partitioned(folder / "disk", "gpt", [bytes(8192), nested.IMAGE])


def in_gpt_of_large_sectors(folder: Path) -> Path:
    """A partition of a GPT with sectors of 4096 bytes."""
    return nested.partitioned(folder / "disk", "gpt", [bytes(8192), nested.IMAGE], sector_bytes=4096)


def in_qcow2(folder: Path) -> Path:
    """A partition in a compressed qcow2."""
    return nested.in_container(in_gpt(folder), "qcow2", "-c")


def in_vmdk(folder: Path) -> Path:
    """A swap file on ext4, in a logical partition of a VMDK."""
    system = nested.with_swap_file(folder, "ext4", "/swapfile")
    return nested.in_container(nested.partitioned(folder / "disk", "dos", [system.read_bytes()]), "vmdk")


def in_vdi(folder: Path) -> Path:
    """A logical volume of two segments, in a partition of a VDI."""
    create = ["lvcreate", "-an", "-Zn", "-Wn", "-L"]
    commands = [
        [*create, "1M", "-n", "swap", "vg"],
        [*create, "2M", "-n", "other", "vg"],
        ["lvextend", "-L", "2M", "vg/swap"],
    ]
    (volume,) = nested.logical_volumes(folder, 1, commands)
    first = 1 << 20  # where LVM puts its first extent
    nested.put(volume, first, nested.IMAGE[: 1 << 20])
    nested.put(volume, first + (3 << 20), nested.IMAGE[1 << 20 :])
    return nested.in_container(nested.partitioned(folder / "disk", "gpt", [volume.read_bytes()]), "vdi")


def in_luks2(folder: Path) -> Path:
    """A logical volume in a LUKS2 volume in a partition."""
    create = ["lvcreate", "-an", "-Zn", "-Wn", "-L", "2M", "-n", "swap", "vg"]
    (volume,) = nested.logical_volumes(folder, 1, [create])
    nested.put(volume, 1 << 20, nested.IMAGE)
    return nested.partitioned(folder / "disk", "gpt", [nested.encrypted_2(volume).read_bytes()])


def in_luks1(folder: Path) -> Path:
    """A LUKS1 volume."""
    return nested.encrypted_1(plain_area(folder))


def in_e01(folder: Path) -> Path:
    """A swap file on ext4, in a partition of an E01 of many segments."""
    system = nested.with_swap_file(folder, "ext4", "/var/lib/suspend.bin")
    return nested.in_e01(nested.partitioned(folder / "disk", "gpt", [system.read_bytes()]))


def on_xfs(folder: Path) -> Path:
    """A swap file on XFS, in a VHDX."""
    return nested.in_container(nested.with_swap_file(folder, "xfs", "/swap/swapfile"), "vhdx")


def on_btrfs(folder: Path) -> Path:
    """A swap file on Btrfs, in a VHD."""
    return nested.in_container(nested.with_swap_file(folder, "btrfs", "/@/swapfile"), "vhd")


def in_stripes(folder: Path) -> Path:
    """A logical volume of two stripes, over two partitions."""
    create = ["lvcreate", "-an", "-Zn", "-Wn", "-L", "2M", "-i", "2", "-I", "64k", "-n", "swap", "vg"]
    volumes = nested.logical_volumes(folder, 2, [create])
    stripe = 64 << 10
    for number in range(len(nested.IMAGE) // stripe):
        row, column = divmod(number, 2)
        part = nested.IMAGE[number * stripe : (number + 1) * stripe]
        nested.put(volumes[column], (1 << 20) + row * stripe, part)
    return nested.partitioned(folder / "disk", "gpt", [volume.read_bytes() for volume in volumes])


DISKS: dict[Callable[[Path], Path], str] = {
    plain_area: "",
    in_logical_partition: "p6",
    in_gpt: "p2",
    in_gpt_of_large_sectors: "p2",
    in_qcow2: "p2",
    in_vmdk: "p5,file=/swapfile",
    in_vdi: "p1,lv=vg/swap",
    in_luks2: "p1,luks,lv=vg/swap",
    in_luks1: "luks",
    in_e01: "p1,file=/var/lib/suspend.bin",
    on_xfs: "file=/swap/swapfile",
    on_btrfs: "file=/@/swapfile",
    in_stripes: "lv=vg/swap",
}


@pytest.mark.parametrize(("make", "spec"), DISKS.items(), ids=[make.__name__ for make in DISKS])
def test_find_prints_the_options_that_open_the_image(make: Callable[[Path], Path], spec: str, tmp_path: Path) -> None:
    """Every page of the image is there, its CRC right."""
    disk = make(tmp_path)
    key = tmp_path / "key"
    key.write_bytes(nested.PASSPHRASE + b"\n")
    secret = ["--passphrase-file", str(key)] if "luks" in spec else []
    found = hibernaut("find", str(disk), *secret)
    assert not found.status, found.out + found.err
    document = hibernaut("find", str(disk), *secret, "--json").document
    images = [layer for layer in document["disks"][0]["layers"] if layer["state"] == "image"]
    assert [layer["volume"] for layer in images] == [spec]
    assert images[0]["options"] in found.out
    opened = [*shlex.split(images[0]["options"]), *secret]
    inspected = hibernaut("inspect", *opened, "--json").document
    assert inspected["problems"] == []
    assert inspected["crc32"]["ok"]
    raw = tmp_path / "raw"
    converted = hibernaut("convert", opened[0], str(raw), *opened[1:], "--to", "raw")
    assert not converted.status, converted.err
    content = raw.read_bytes()
    for pfn, page in plain(PAGES).items():
        assert content[pfn * 4096 : (pfn + 1) * 4096] == page


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("p9", "no partition 9: .*; expected p1, p2"),
        ("p0", "'p0' is not a step to a volume; expected steps such as"),
        ("p2,luks", "no LUKS header: "),
        ("p2,file=/swapfile", "there is no file system"),
        ("p2,lv=vg/swap", "no logical volume vg/swap: .*; expected none is here"),
    ],
)
def test_a_specification_that_leads_nowhere(spec: str, said: str, tmp_path: Path) -> None:
    """The step, the volume, and what is there instead."""
    disk = in_gpt(tmp_path)
    assert re.search(said, refused("inspect", str(disk), "--volume", spec))
    assert "--volume excludes" in refused("inspect", str(disk), "--volume", "p2", "--partition", "2")


def test_a_locked_volume_is_listed(tmp_path: Path) -> None:
    """Without its passphrase, or with another, its kind is said, and why nothing inside is listed."""
    disk = in_luks1(tmp_path)
    for secret, said in ((None, "a passphrase is needed"), (b"wrong", "the passphrase does not fit")):
        words = ["find", str(disk), "--json"]
        if secret is not None:
            (tmp_path / "key").write_bytes(secret)
            words += ["--passphrase-file", str(tmp_path / "key")]
        result = hibernaut(*words)
        assert result.status == 1
        (layer,) = result.document["disks"][0]["layers"]
        assert layer["kind"] == "luks"
        assert said in layer["problem"]


def test_an_image_in_a_volume_stays_as_it_is(tmp_path: Path) -> None:
    """It is rewritten to another file; in place, never."""
    disk = in_gpt(tmp_path)
    before = disk.read_bytes()
    assert "is not changed in place" in refused(
        "rewrite", str(disk), "--volume", "p2", "--compressor", "none", "--in-place"
    )
    assert disk.read_bytes() == before
    made = hibernaut("rewrite", str(disk), str(tmp_path / "new"), "--volume", "p2", "--compressor", "none")
    assert not made.status, made.err
    assert hibernaut("inspect", str(tmp_path / "new"), "--json").document["compressor"] == "none"


def test_thin_volumes_are_named(tmp_path: Path) -> None:
    """A type that is not read is listed with its name, and never opened; the volume beside it is whole."""
    create = ["lvcreate", "-an", "-Zn", "-Wn", "-L", "2M", "-n", "swap", "vg"]
    (disk,) = nested.logical_volumes(tmp_path, 1, [create])
    with open_plain(disk) as file:
        found = physical_volume(file)
        assert found is not None
        assert found.metadata is not None
        volumes = found.metadata["vg"]["logical_volumes"]
        thin = {**volumes["swap"]["segment1"], "type": "thin"}
        volumes["thin"] = {**volumes["swap"], "segment1": thin}
        by_name = {one.name: one for one in logical_volumes([found])}
    assert by_name["thin"].problem == "its type is thin, which is not read"
    assert by_name["thin"].volume is None
    assert by_name["swap"].problem is None


def test_the_metadata_of_lvm_is_a_ring(tmp_path: Path) -> None:
    """After many changes the newest text goes over the end of its area, and is put together."""
    create = ["lvcreate", "-an", "-Zn", "-Wn", "-L", "2M", "-n", "swap", "vg"]
    tags = [["vgchange", "--addtag", "t" * 900 + str(number), "vg"] for number in range(24)]
    (volume,) = nested.logical_volumes(tmp_path, 1, [create, *tags, *tags])
    nested.put(volume, 1 << 20, nested.IMAGE)
    with open_plain(volume) as file:
        found = physical_volume(file)
        assert found is not None
        assert found.metadata is not None
        assert len(found.metadata["vg"]["tags"]) == len(tags)
    assert not hibernaut("inspect", str(volume), "--volume", "lv=vg/swap").status


def test_an_e01_without_a_segment_is_refused(tmp_path: Path) -> None:
    """The library would give the next segment's bytes in its place."""
    disk = in_e01(tmp_path)
    disk.with_suffix(".E03").unlink()
    assert "segments of the e01 hold" in refused("inspect", str(disk), "--volume", "p1,file=/var/lib/suspend.bin")


def test_without_the_extra_partitions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot be looked into is listed with the command that installs the library."""

    def missing(name: str) -> object:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("hibernaut.volumes.extras.importlib", SimpleNamespace(import_module=missing))
    system = nested.with_swap_file(tmp_path, "ext4", "/swapfile").read_bytes()
    disk = nested.partitioned(tmp_path / "disk", "gpt", [nested.IMAGE, system])
    found = {layer["volume"]: layer for layer in hibernaut("find", str(disk), "--json").document["disks"][0]["layers"]}
    assert found["p1"]["state"] == "image"
    assert found["p2"]["kind"] == "not looked into"
    assert re.search("dissect.extfs is not installed: .*install dissect", found["p2"]["problem"])
    assert not hibernaut("inspect", str(disk), "--volume", "p1").status


def test_a_table_that_holds_itself_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of partitions that each hold the same table again: so many volumes are looked into, and no more."""
    sector, count, most = 512, 128, 20
    monkeypatch.setattr("hibernaut.volumes.layers.MOST_VOLUMES", most)
    disk = bytearray(64 * 1024)
    write_table(disk, 0, [mbr_entry(0xEE, 1, 0xFFFFFFFF)])
    disk[sector : sector + 8] = b"EFI PART"
    struct.pack_into("<QII", disk, sector + 72, 2, count, 128)
    for number in range(count):
        struct.pack_into("<16s16sQQ", disk, 2 * sector + 128 * number, b"\1" * 16, b"\2" * 16, 64, 1 << 40)
    whole = bytes(disk[: 64 * sector])
    path = tmp_path / "disk"
    path.write_bytes(whole * 20)
    found = hibernaut("find", str(path), "--json").document["disks"][0]["layers"]
    assert len(found) <= 2 * most
    assert found[-1]["problem"] == f"the walk ends here: {most} volumes were looked into"


def test_a_passphrase_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal, `find` asks once it meets an encrypted volume, and not before."""
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return nested.PASSPHRASE.decode()

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("getpass.getpass", answer)
    assert not hibernaut("find", str(plain_area(tmp_path))).status
    assert asked == []
    assert not hibernaut("find", str(in_luks1(tmp_path))).status
    assert asked == ["Passphrase: "]
