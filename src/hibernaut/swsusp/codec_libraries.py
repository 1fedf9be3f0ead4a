# SPDX-License-Identifier: GPL-2.0-or-later
"""The libraries of each compressor that are installed: name, version and files of each, and which one is used."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.swsusp.codecs import Codec, CompressorName, codec_named, makers_of
from hibernaut.swsusp.system_codecs import LZ4_NAMES, LZO_NAMES, library_file

__all__ = ["CodecLibrary", "installed_libraries", "library_in_use"]

SYSTEM_NAMES = {"liblzo2": LZO_NAMES, "liblz4": LZ4_NAMES}
MODULES = {"python-lzo": "lzo", "lzallright": "lzallright", "lz4": "lz4.block", "cramjam": "cramjam"}
"""Module of each Python package."""


@dataclass(frozen=True)
class CodecLibrary:
    """Libraries that implement a compressor together; nearly always one.

    Attributes:
        compressor: lzo or lz4.
        names: name of each.
        versions: version of each, as it states it.
        files: the file that each was loaded from; None where the system does not tell.
        works: whether a page survived the way there and back.
    """

    compressor: CompressorName
    names: tuple[str, ...]
    versions: tuple[str, ...]
    files: tuple[str | None, ...]
    works: bool

    def __str__(self) -> str:
        parts = zip(self.names, self.versions, self.files, strict=True)
        text = " with ".join(f"{name} {version} ({file or 'file unknown'})" for name, version, file in parts)
        return text if self.works else f"{text}: does not work"


def library_in_use(compressor: CompressorName) -> CodecLibrary | None:
    """Return the libraries that `codec_named` uses; None if data are not compressed, or no library is installed."""
    if compressor == "none":
        return None
    try:
        return _library(codec_named(compressor))
    except HibernautError:
        return None


def installed_libraries(compressor: CompressorName) -> list[CodecLibrary]:
    """Return all installed libraries of a compressor, in the order in which they are chosen: the first one is used."""
    found = []
    for maker in makers_of(compressor):
        try:
            found.append(_library(maker()))
        except ImportError:
            continue
    return found


def _library(codec: Codec) -> CodecLibrary:
    if codec.system is not None:
        path = library_file(SYSTEM_NAMES[codec.library])
        file = None if path is None else str(path)
        return CodecLibrary(codec.name, (codec.library,), (codec.system.version,), (file,), _works(codec))
    names = codec.packages
    return CodecLibrary(
        codec.name,
        names,
        tuple(importlib.metadata.version(name) for name in names),
        tuple(importlib.import_module(MODULES[name]).__file__ for name in names),
        _works(codec),
    )


def _works(codec: Codec) -> bool:
    """Return whether a page of words survives compression and decompression."""
    page = np.resize(np.arange(100, dtype=np.uint8), 4096)
    out = np.zeros_like(page)
    try:
        codec.decompress_into(np.frombuffer(codec.compress(page), dtype=np.uint8), out)
    except (ValueError, RuntimeError):
        return False
    return bool((out == page).all())
