# SPDX-License-Identifier: GPL-2.0-or-later
"""The option of commands that write a file: a manifest beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hibernaut import __version__
from hibernaut.cli.progress import page_progress
from hibernaut.report.documents import DigestDocument, ManifestAreaDocument, ManifestDocument
from hibernaut.report.manifest import manifest_document
from hibernaut.volumes.digests import sha256_of
from hibernaut.volumes.output import replacing, write_all

__all__ = ["Manifest", "ManifestOption"]


@dataclass(frozen=True)
class Manifest:
    """A manifest that is being made: it appears when the block that it belongs to ends without an error.

    Attributes:
        source: facts of the source, taken before it is read.
        quiet: whether to show nothing.
        fd: its file.
    """

    source: DigestDocument
    quiet: bool
    fd: int

    def write(self, out: Path, area: ManifestAreaDocument | None) -> ManifestDocument:
        """Write it, with the facts of a complete output, and return its content. Raises OSError."""
        document = manifest_document(
            __version__, ["hibernaut", *sys.argv[1:]], self.source, _digest(out, self.quiet), area
        )
        write_all(self.fd, memoryview((json.dumps(document, indent=2) + "\n").encode()), 0)
        return document


@dataclass(frozen=True)
class ManifestOption:
    """The file of a manifest."""

    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="FILE",
            help="Also write a JSON file of the command, the time, and size and SHA-256 of source and output. "
            "Default: none.",
        ),
    ] = None

    @contextmanager
    def begun(self, source: Path, out: Path, quiet: bool) -> Iterator[Manifest | None]:
        """Yield the manifest; None if none is asked for. Raises BadParameter if it would replace another file of use.

        Args:
            source: the source, whose digest is taken now.
            out: the output.
            quiet: whether to show nothing.
        """
        if self.manifest is None:
            yield None
            return
        for other in (source, out):
            if self.manifest.resolve() == other.resolve() or (
                self.manifest.exists() and other.exists() and self.manifest.samefile(other)
            ):
                raise typer.BadParameter(f"{other} is another file of this command", param_hint="--manifest")
        with replacing(self.manifest) as fd:
            yield Manifest(_digest(source, quiet), quiet, fd)


def _digest(path: Path, quiet: bool) -> DigestDocument:
    with page_progress(f"digest of {path}", None, quiet) as advance:
        size_bytes, sha256 = sha256_of(path, lambda got: advance(got // 4096))
    return {"path": str(path), "size_bytes": size_bytes, "sha256": sha256}
