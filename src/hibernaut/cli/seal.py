# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut seal AREA`: a sealed manifest of all that a resuming kernel reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import AreaOptions, OutputOptions, number, refuse_same_file
from hibernaut.cli.progress import page_progress
from hibernaut.cli.seal_options import AreaArgument, KeptCounter, opened_area, seal_manifest_option
from hibernaut.report.seals import seal_document, seal_text
from hibernaut.sealing.keys import SealingKey, read_passphrase, read_signing_key
from hibernaut.sealing.making import make_manifest
from hibernaut.volumes.output import write_file

__all__ = ["seal"]


def seal(
    area: AreaArgument,
    options: AreaOptions,
    kept: KeptCounter,
    output: OutputOptions,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="Private Ed25519 key (PEM), as seal-key makes it. Default: none."),
    ] = None,
    secret: Annotated[
        Path | None,
        typer.Option(
            "--secret",
            metavar="FILE",
            help="File with a passphrase, in place of a key: the verifier then needs it, too. Default: none.",
        ),
    ] = None,
    manifest: Annotated[Path | None, seal_manifest_option("for")] = None,
    counter: Annotated[
        int | None,
        typer.Option(
            "--counter",
            parser=number,
            metavar="N",
            help="Number that `verify --least` compares: raise it with each image. Default: 0.",
        ),
    ] = None,
) -> None:
    """Seal an image: digest every block that a resuming kernel reads, in its order, and sign the list.

    In the area itself, the manifest goes to blocks that the image and the saved machine do not use, which needs drgn
    and a kernel with BTF; a compressed file or one inside a disk image takes --manifest.

    With --counter-file or --counter-tpm, the kept counter is raised by one, and the seal has it.
    """
    if (key is None) == (secret is None):
        raise typer.BadParameter("give either --key or --secret", param_hint="--key")
    keeper = kept.counter()
    if keeper is not None and counter is not None:
        raise typer.BadParameter("a kept counter gives the number; leave --counter out", param_hint="--counter")
    if manifest is not None:
        refuse_same_file(manifest, area, *filter(None, (key, secret)), kept.counter_file, option="--manifest")
    if kept.counter_file is not None:
        refuse_same_file(kept.counter_file, area, *filter(None, (key, secret)), option="--counter-file")
    sealing: SealingKey = read_signing_key(key) if key is not None else read_passphrase(secret or "")
    with (
        opened_area(options, area) as (blocks, header_block),
        page_progress(f"digests of {area}", None, output.quiet) as advance,
    ):
        data, made, _, _ = make_manifest(
            blocks,
            sealing,
            header_block=header_block,
            counter=keeper.next_value() if keeper else counter or 0,
            progress=advance,
        )
    if keeper is not None:  # before the manifest is anywhere: no counter is ever given to two images
        keeper.raise_to(made.counter)
    if manifest is not None:
        write_file(manifest, data)
        block = None
    else:
        block = _into_area(area, options, data)
    document = seal_document(str(area), made, len(data), None if manifest is None else str(manifest), block)
    output.answer(document, seal_text)


def _into_area(area: Path, options: AreaOptions, data: bytes) -> int:
    """Write the manifest into the area and return its block. Raises FormatError, HibernautError, OSError."""
    from hibernaut.kernel.free_slots import free_blocks
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.sealing.in_area import write_into_area
    from hibernaut.sources import open_memory

    volume, offset = options.place(area)
    with open_memory(volume, offset=offset, partition=options.partition, base=options.base) as source:
        free = free_blocks(Kernel.of(source), source)
        assert source.image is not None  # free_blocks refuses others
        return write_into_area(source.image, free, data)
