# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages of the laboratory: from signed archives only, unpacked into their folder only. Witness: apt, dpkg-deb."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from hibernaut.errors import LabUnavailable
from hibernaut.lab.host import debian
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import SIGNED_ONLY, Archive, _unpack

NEEDED = [name for name in ("apt-config", "dpkg-deb", "tar") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"{', '.join(NEEDED)} not installed")


def package(folder: Path, name: str, files: dict[str, bytes | Path]) -> Path:
    """Return a package with files, or with symbolic links where a path is given."""
    tree = folder / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: m <m@example.org>\nDescription: d\n"
    )
    for path, content in files.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            target.symlink_to(content)
        else:
            target.write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, folder / f"{name}.deb"], check=True, capture_output=True)
    return folder / f"{name}.deb"


def test_packages_are_unpacked_into_one_folder(tmp_path: Path) -> None:
    """With a merged /usr, links of packages included, as Debian's kernels have them."""
    out = tmp_path / "out"
    first = package(tmp_path, "first", {"boot/vmlinuz": b"k", "lib/modules/1/a.ko": b"m"})
    second = package(tmp_path, "second", {"usr/lib/modules/1/build": Path("/usr/src/headers"), "usr/share/x": b"x"})
    _unpack([first, second], out)
    assert (out / "usr/lib/modules/1/a.ko").read_bytes() == b"m"
    assert (out / "lib/modules/1/build").is_symlink()


def test_a_package_does_not_write_through_a_link(tmp_path: Path) -> None:
    """Neither through its own nor through one that another has unpacked; nothing is written outside."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = package(tmp_path, "link", {"usr/share/way": elsewhere})
    through = package(tmp_path, "through", {"usr/share/way/file": b"outside"})
    with pytest.raises(LabUnavailable, match=r"through\.deb writes .*usr/share/way/file through a symbolic link"):
        _unpack([link, through], tmp_path / "out")
    assert not list(elsewhere.iterdir())


def test_a_package_does_not_leave_its_folder(tmp_path: Path) -> None:
    """A member with `..` in its name, which only a crafted archive has."""
    crafted = package(tmp_path, "crafted", {"usr/x": b"x"})
    evil = tmp_path / "data.tar"
    with tarfile.open(evil, "w") as archive:
        member = tarfile.TarInfo("./usr/../../escaped")
        archive.addfile(member)
    subprocess.run(["ar", "d", crafted, "data.tar"], check=True)
    subprocess.run(["ar", "q", crafted, evil], check=True, cwd=tmp_path, capture_output=True)
    with pytest.raises(LabUnavailable, match="out of its folder"):
        _unpack([crafted], tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


def test_unsigned_archives_are_not_taken(tmp_path: Path) -> None:
    """Whatever apt's configuration allows: the options of the laboratory's calls come last."""
    names = SIGNED_ONLY[1::2]
    allowed = tmp_path / "apt.conf"
    allowed.write_text("".join(f'{name.split("=")[0]} "true";\n' for name in names))
    environment = {**os.environ, "APT_CONFIG": str(allowed)}

    def settings(*options: str) -> str:
        done = subprocess.run(
            ["apt-config", *options, "dump"], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    for name in names:
        option = name.split("=")[0]
        assert f'{option} "true";' in settings()
        assert f'{option} "false";' in settings(*SIGNED_ONLY)


def test_lists_of_another_mirror_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends while the lists of a new mirror are fetched: the next one fetches them, not the old ones."""
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "keyring")
    (tmp_path / "keyring").touch()
    fetched: list[str] = []

    def update(command: list[str], **_: object) -> None:
        assert command[-1] == "update"
        fetched.append((root / "sources.list").read_text())
        if len(fetched) == 2:
            raise KeyboardInterrupt
        (root / "lists" / f"m_{archive.suite}_main_binary-amd64_Packages").touch()

    monkeypatch.setattr(subprocess, "run", update)
    archive = Archive(Cache(tmp_path / "cache"), "trixie", "http://one.example")
    root = archive._root
    assert archive._configured().read_text().startswith("Dir::Etc::sourcelist")
    other = Archive(Cache(tmp_path / "cache"), "trixie", "http://two.example")
    with pytest.raises(KeyboardInterrupt):
        other._configured()
    other._configured()
    other._configured()
    assert ["two.example" in sources for sources in fetched] == [False, True, True]
    assert sorted(path.name for path in root.iterdir()) == ["apt.conf", "cache", "lists", "sources.list", "status"]
