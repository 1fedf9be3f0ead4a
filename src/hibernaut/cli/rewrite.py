# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut rewrite IMAGE [OUT]`: an image written again into its own blocks, its memory changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.common import (
    BaseOption,
    JsonOption,
    OffsetOption,
    PartitionOption,
    QuietOption,
    console,
    number,
    print_json,
    progress_bar,
    refuse_same_file,
)
from hibernaut.cli.save import Compressor, YesNo
from hibernaut.report.images import rewrite_document
from hibernaut.report.text import rewritten_text
from hibernaut.swsusp import Image, open_image, rewrite_image
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
    image: Annotated[Path, typer.Argument(help="The swap area: a partition's image, or a disk's; or a block device.")],
    out: Annotated[
        Path | None, typer.Argument(help="The file to make, a copy of IMAGE's; it appears whole or not at all.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write into IMAGE itself; at any instant it holds an old or a new image.")
    ] = False,
    compressor: Annotated[Compressor | None, typer.Option("--compressor", help="Default: as in the image.")] = None,
    zero_pages: Annotated[
        YesNo | None,
        typer.Option(
            "--zero-pages", help="Leave out zero pages (read by Linux 6.6 and later). Default: as in the image."
        ),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option("--write", metavar="PADDR=HEX", help="Bytes to write at a physical address; repeatable."),
    ] = None,
    write_file: Annotated[
        list[str] | None,
        typer.Option(
            "--write-file", metavar="PADDR=FILE", help="The same from a file; after all of --write; repeatable."
        ),
    ] = None,
    offset: OffsetOption = 0,
    partition: PartitionOption = None,
    base: BaseOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write an image again into the blocks it has, with another compressor or other bytes in memory."""
    if (out is None) != in_place:
        raise typer.BadParameter("give either OUT or --in-place", param_hint="OUT")
    if out is not None:
        refuse_same_file(out, image)
    texts = [_hex_write(text) for text in write or []]
    files = [_file_write(text) for text in write_file or []]
    if out is not None:
        refuse_same_file(out, *(path for _, path in files))
    with open_image(image, offset=offset, partition=partition, base=base) as opened:
        writes = [*texts, *((paddr, _contents(opened, paddr, path)) for paddr, path in files)]
        with progress_bar(f"writing {out or image}", len(opened.pfns), quiet) as advance:
            written = rewrite_image(
                opened,
                out,
                writes=writes,
                compressor=compressor.value if compressor else None,
                zero_pages=zero_pages is YesNo.YES if zero_pages else None,
                progress=advance,
            )
        document = rewrite_document(written, compressor.value if compressor else opened.compressor, in_place, writes)
    if json:
        print_json(document)
    elif not quiet:
        console().print(rewritten_text(str(out or image), document))


def _contents(image: Image, paddr: int, path: Path) -> bytes:
    """A file's bytes, refused by its size before it is read. Raises FormatError or OSError."""
    if not path.is_file() and path.exists():
        raise typer.BadParameter(f"{path} is not a regular file", param_hint="--write-file")
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise typer.BadParameter(f"{path} is empty", param_hint="--write-file")
    refuse_unlisted(image, paddr, size_bytes)
    return path.read_bytes()
