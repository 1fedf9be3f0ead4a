# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut verify AREA`: whether a resuming kernel will read what was sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import AreaOptions, OutputOptions, number
from hibernaut.cli.progress import page_progress
from hibernaut.cli.seal_options import AreaArgument, KeptCounter, opened_area, seal_manifest_option
from hibernaut.report.seals import verify_document, verify_text
from hibernaut.sealing.alone import read_manifest
from hibernaut.sealing.counters import accept
from hibernaut.sealing.in_window import manifest_in_area
from hibernaut.sealing.keys import CheckingKey, read_passphrase, read_public_key
from hibernaut.sealing.verification import verify_image

__all__ = ["verify"]


def verify(
    area: AreaArgument,
    options: AreaOptions,
    kept: KeptCounter,
    output: OutputOptions,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="Public Ed25519 key (PEM), the .pub of seal-key. Default: none."),
    ] = None,
    secret: Annotated[
        Path | None,
        typer.Option("--secret", metavar="FILE", help="File with the passphrase that sealed the image. Default: none."),
    ] = None,
    manifest: Annotated[Path | None, seal_manifest_option("with")] = None,
    least: Annotated[
        int | None,
        typer.Option(
            "--least",
            parser=number,
            metavar="N",
            help="Smallest counter that is accepted, against an older image with its own seal. Default: 0.",
        ),
    ] = None,
    once: Annotated[
        bool,
        typer.Option(
            "--once",
            help="Raise the kept counter above that of a whole image, which is refused the next time. "
            "Default: raise it to the image's.",
        ),
    ] = False,
) -> None:
    """Tell whether a resuming kernel will read of an image what was sealed: one line, and the exit status.

    0: all of it is as sealed. 1: it is not (the first block that differs is named), or its counter is too small.
    2: there is no image, no seal of this key, or the area cannot be read.

    With --counter-file or --counter-tpm, images older than the newest one that was sealed or whole are refused.
    """
    if (key is None) == (secret is None):
        raise typer.BadParameter("give either --key or --secret", param_hint="--key")
    counter = kept.counter()
    if once and counter is None:
        raise typer.BadParameter("no counter is kept; give --counter-file or --counter-tpm", param_hint="--once")
    checking: CheckingKey = read_public_key(key) if key is not None else read_passphrase(secret or "")
    with opened_area(options, area) as (blocks, header_block):
        block = None
        if manifest is not None:
            sealed = read_manifest(manifest, checking)
        else:
            sealed, block = manifest_in_area(blocks, checking, header_block)
        smallest = max(least or 0, counter.at_most(sealed.counter) if counter else 0)
        with page_progress(f"digests of {area}", sealed.entries, output.quiet) as advance:
            verdict = verify_image(blocks, sealed, header_block=header_block, least=smallest, progress=advance)
    accepted = accept(verdict, counter, once)
    place = None if manifest is None else str(manifest)
    output.answer(verify_document(str(area), verdict, place, block, accepted), verify_text)
    if verdict.state != "whole":
        raise typer.Exit(1)
