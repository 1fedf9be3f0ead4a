# SPDX-License-Identifier: GPL-2.0-or-later
"""The libraries of the compressors are named as they are: the one in use first, with its version and its file."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hibernaut.report.codecs import codec_document, libraries_text
from hibernaut.swsusp import codec_libraries, codecs
from hibernaut.swsusp.codec_libraries import installed_libraries, library_in_use
from hibernaut.swsusp.codecs import Codec, CompressorName, codec_named
from tests.cli.run import hibernaut
from tests.conftest import Golden

NAMES: tuple[CompressorName, ...] = ("lzo", "lz4")


def absent() -> Codec:
    """A maker whose library is not installed."""
    raise ImportError


@pytest.mark.parametrize("name", NAMES)
def test_the_first_one_is_the_one_in_use(name: CompressorName) -> None:
    """The order is that in which codecs are chosen, and each survives a page there and back."""
    found = installed_libraries(name)
    assert found[0].names[0] == codec_named(name).library
    assert found[0] == library_in_use(name)
    assert all(one.works and one.compressor == name for one in found)
    assert len({one.names for one in found}) == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_versions_and_files_are_the_librarys_own(name: CompressorName) -> None:
    """A package's version is that of its metadata; the version of a system's library is in the file's bytes."""
    for library in installed_libraries(name):
        for one, version, file in zip(library.names, library.versions, library.files, strict=True):
            assert file is not None
            assert Path(file).exists()
            if one.startswith("lib"):
                assert version.encode() in Path(file).read_bytes()
            else:
                assert version == importlib.metadata.version(one)


@pytest.mark.parametrize(("name", "maker"), [("lzo", "_liblzo2"), ("lz4", "_liblz4")])
def test_without_the_systems_library_another_one_is_named(
    name: CompressorName, maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python package is then first, in the text and in the document."""
    monkeypatch.setattr(codecs, maker, absent)
    found = library_in_use(name)
    assert found is not None
    assert found.names[0] == codec_named(name).library
    assert not found.names[0].startswith("lib")
    assert codec_document(name)[0]["name"] == found.names[0]
    assert any(line.startswith(f"{name}: {found.names[0]} ") for line in libraries_text())


def test_a_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text names the packages to install; a document has none."""
    for maker in ("_liblzo2", "_python_lzo", "_lzallright"):
        monkeypatch.setattr(codecs, maker, absent)
    assert "lzo: no library; install lzallright" in libraries_text()
    assert codec_document("lzo") == []
    assert codec_document("none") == []


def broken(real: Codec) -> Callable[[], Codec]:
    """A maker of a codec that loses the last byte."""

    def wrong(packed: np.ndarray, out: np.ndarray) -> None:
        real.decompress_into(packed, out)
        out[-1] ^= 1

    return lambda: replace(real, decompress_into=wrong)


def test_a_library_that_does_not_work_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that loads and returns other bytes is not called a working one."""
    monkeypatch.setattr(codecs, "_lzallright", broken(codecs._lzallright()))
    (found,) = (one for one in installed_libraries("lzo") if one.names == ("lzallright",))
    assert not found.works
    assert str(found).endswith(": does not work")
    assert codec_libraries.library_in_use("lz4") is not None


def test_the_command_line_tells(golden: Golden) -> None:
    """`--version --verbose` in either order, `inspect --json`, and nothing of a home folder with `--redact`."""
    plain = hibernaut("--version")
    for arguments in (("--version", "--verbose"), ("--verbose", "--version")):
        told = hibernaut(*arguments)
        assert (told.status, told.out.splitlines()[0]) == (0, plain.out.strip())
        assert told.out.splitlines()[1:] == libraries_text()
    alone = hibernaut("--verbose")
    assert (alone.status, "--verbose goes with --version" in alone.err) == (2, True)
    image = str(golden("swap-6.1-lzo.img"))
    document = json.loads(hibernaut("inspect", image, "--json", "--no-machine").out)
    assert document["codec"] == codec_document("lzo")
    redacted = json.loads(hibernaut("inspect", image, "--json", "--no-machine", "--redact").out)
    assert [one["name"] for one in redacted["codec"]] == [one["name"] for one in document["codec"]]
    assert all("/" not in one["file"] for one in redacted["codec"])
