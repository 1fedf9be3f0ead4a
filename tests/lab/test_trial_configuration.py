# SPDX-License-Identifier: GPL-2.0-or-later
"""The needs of a trial, checked in a kernel's configuration."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
from hibernaut.lab.host.kernels import GuestKernel
from hibernaut.lab.trial.configuration import (
    NEEDS,
    NeededOption,
    configuration_of,
    digest_of,
    fragment,
    lacking,
    read_configuration,
)
from hibernaut.lab.trial.situations import SITUATIONS


def test_the_fragment_is_enough(tmp_path: Path) -> None:
    """A configuration with all of it lacks nothing; without any one option it lacks that one."""
    (tmp_path / "config").write_text(fragment())
    assert lacking(read_configuration(tmp_path / "config")) == []
    for need in NEEDS:
        (tmp_path / "config").write_text(fragment().replace(f"{need.option}=y", f"# {need.option} is not set"))
        (lack,) = lacking(read_configuration(tmp_path / "config"))
        assert (lack.need, lack.found) == (need, "n")
        assert lack.text.startswith(f"{need.option} is n: ")


@pytest.mark.parametrize("need", [one for one in NEEDS if one.situation], ids=lambda need: need.option)
def test_a_need_of_one_situation_names_it(need: NeededOption) -> None:
    """It is one of the table."""
    assert need.situation in {one.name for one in SITUATIONS}


def test_a_module_will_do_where_it_can(tmp_path: Path) -> None:
    """The disks' drivers may be modules; hibernation may not be one."""
    (tmp_path / "config").write_text(fragment().replace("=y", "=m"))
    found = {one.need.option for one in lacking(read_configuration(tmp_path / "config"))}
    assert found == {one.option for one in NEEDS if not one.modular}


def test_a_compressed_configuration(tmp_path: Path) -> None:
    """As /proc/config.gz: the same digest, whatever the order and the comments."""
    (tmp_path / "config").write_text("# a comment\nCONFIG_A=y\nCONFIG_B=m\n")
    (tmp_path / "config.gz").write_bytes(gzip.compress(b"CONFIG_B=m\n# CONFIG_C is not set\nCONFIG_A=y\n"))
    digests = {digest_of(read_configuration(tmp_path / name)) for name in ("config", "config.gz")}
    assert len(digests) == 1
    (tmp_path / "config").write_text("CONFIG_A=y\nCONFIG_B=y\n")
    assert digest_of(read_configuration(tmp_path / "config")) not in digests


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x1f\x8b\x08damaged"], ids=["empty", "text", "damaged"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    """Refused by name."""
    (tmp_path / "config").write_bytes(content)
    with pytest.raises(FormatError, match="not a configuration"):
        read_configuration(tmp_path / "config")


def test_the_configuration_of_a_build_tree(tmp_path: Path) -> None:
    """It is read where it lies."""
    (tmp_path / ".config").write_text("CONFIG_HIBERNATION=y\n")
    kernel = GuestKernel("mine", "6.7.8", tmp_path / "bzImage", tmp_path, tree=tmp_path)
    assert configuration_of(kernel) == read_configuration(tmp_path / ".config")
    assert configuration_of(replace(kernel, tree=None)) is None


def test_the_configuration_beside_a_package_of_debian(tmp_path: Path) -> None:
    """In /boot, or among the modules in later packages."""
    kernel = GuestKernel("6.1", "6.1.0-1-amd64", tmp_path / "vmlinuz", tmp_path / "modules")
    (tmp_path / "config-6.1.0-1-amd64").write_text("CONFIG_A=y\n")
    assert configuration_of(kernel) == read_configuration(tmp_path / "config-6.1.0-1-amd64")
    kernel.modules.mkdir()
    (kernel.modules / "config").write_text("CONFIG_B=y\n")
    assert configuration_of(kernel) == read_configuration(kernel.modules / "config")
