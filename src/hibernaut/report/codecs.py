# SPDX-License-Identifier: GPL-2.0-or-later
"""The libraries of the compressors, as a document and in words."""

from __future__ import annotations

from hibernaut.report.documents import CodecLibraryDocument
from hibernaut.swsusp.codec_libraries import CodecLibrary, installed_libraries, library_in_use
from hibernaut.swsusp.codecs import PACKAGES, CompressorName

__all__ = ["codec_document", "libraries_text"]


def codec_document(compressor: CompressorName) -> list[CodecLibraryDocument]:
    """Return the libraries that read and write data of a compressor here; none if data are not compressed."""
    library = library_in_use(compressor)
    if library is None:
        return []
    parts = zip(library.names, library.versions, library.files, strict=True)
    return [{"name": name, "version": version, "file": file} for name, version, file in parts]


def libraries_text() -> list[str]:
    """Return a line for each installed library of each compressor: the one in use first, then the others."""
    names: tuple[CompressorName, ...] = ("lzo", "lz4")
    return [line for name in names for line in _lines(name, installed_libraries(name))]


def _lines(compressor: CompressorName, libraries: list[CodecLibrary]) -> list[str]:
    if not libraries:
        return [f"{compressor}: no library; install {' and '.join(PACKAGES[compressor])}"]
    used, *others = libraries
    return [f"{compressor}: {used}", *(f"     else {other}" for other in others)]
