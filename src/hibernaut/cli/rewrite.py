# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut rewrite IMAGE [OUT]`: an image written again into its own blocks, its memory changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.manifest import ManifestOption
from hibernaut.cli.options import (
    AreaOptions,
    ContentOptions,
    ImageArgument,
    OutputOptions,
    number,
    refuse_same_file,
)
from hibernaut.cli.progress import page_progress
from hibernaut.report.images import rewrite_document
from hibernaut.report.manifest import image_area_document
from hibernaut.report.text import rewritten_text
from hibernaut.swsusp import Image, rewrite_image
from hibernaut.swsusp.rewrite import refuse_unlisted

__all__ = ["rewrite"]


def _address_and_rest(text: str, what: str) -> tuple[int, str]:
    paddr, equals, rest = text.partition("=")
    if not equals or not rest:
        raise typer.BadParameter(f"{text!r} is not of the form PADDR={what}")
    return number(paddr), rest


def _hex_write(text: str) -> tuple[int, bytes]:
    paddr, rest = _address_and_rest(text, "HEX")
    try:
        data = bytes.fromhex(rest.removeprefix("0x"))
    except ValueError:
        raise typer.BadParameter(f"{rest!r} is not bytes in hexadecimal, two digits each") from None
    if not data:
        raise typer.BadParameter(f"{text!r} has no bytes")
    return paddr, data


def _file_write(text: str) -> tuple[int, Path]:
    paddr, rest = _address_and_rest(text, "FILE")
    return paddr, Path(rest)


def rewrite(
    image: ImageArgument,
    options: AreaOptions,
    content: ContentOptions,
    manifest: ManifestOption,
    output: OutputOptions,
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="File to make, a copy of IMAGE; it appears whole or not at all. Default: see --in-place.",
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Write into IMAGE itself, which holds the old image, none, or the new one at any instant. "
            "Default: no.",
        ),
    ] = False,
    write: Annotated[
        list[str] | None,
        typer.Option(
            "--write",
            metavar="PADDR=HEX",
            help="Write these bytes at a physical address of the machine's memory; repeatable. Default: nothing.",
        ),
    ] = None,
    write_file: Annotated[
        list[str] | None,
        typer.Option(
            "--write-file",
            metavar="PADDR=FILE",
            help="Write the bytes of a file there, after all of --write; repeatable. Default: nothing.",
        ),
    ] = None,
) -> None:
    """Write an image again into its own blocks, with another compressor or other bytes in memory."""
    if (out is None) != in_place:
        raise typer.BadParameter("give either OUT or --in-place", param_hint="OUT")
    texts = [_hex_write(text) for text in write or []]
    files = [_file_write(text) for text in write_file or []]
    if out is not None:
        refuse_same_file(out, image, *(path for _, path in files))
    with manifest.begun(image, out or image, output.quiet) as made, options.open_image(image) as opened:
        area = image_area_document(opened, compared=True)
        writes = [*texts, *((paddr, _contents(opened, paddr, path)) for paddr, path in files)]
        compressor = content.compressor_for(opened)
        with page_progress(f"writing {out or image}", opened.frames.total_pages, output.quiet) as advance:
            written = rewrite_image(
                opened,
                out,
                writes=writes,
                compressor=compressor,
                zero_pages=content.zero_pages_for(opened),
                progress=advance,
            )
        document = rewrite_document(written, compressor, in_place, writes)
        if made is not None:
            document["manifest"] = made.write(out or image, area)
    output.answer(document, lambda done: rewritten_text(str(out or image), done))


def _contents(image: Image, paddr: int, path: Path) -> bytes:
    """Return the bytes of a file; its size is checked first. Raises FormatError or OSError."""
    if not path.is_file() and path.exists():
        raise typer.BadParameter(f"{path} is not a regular file", param_hint="--write-file")
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise typer.BadParameter(f"{path} is empty", param_hint="--write-file")
    refuse_unlisted(image, paddr, size_bytes)
    return path.read_bytes()
