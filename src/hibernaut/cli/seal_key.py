# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut seal-key FILE`: a pair of keys for seals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import OutputOptions
from hibernaut.report.seals import seal_key_document, seal_key_text
from hibernaut.sealing.keys import make_keys

__all__ = ["seal_key"]


def seal_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File for the private key; the public one is FILE.pub.")],
    output: OutputOptions,
    tpm: Annotated[
        bool,
        typer.Option(
            "--tpm",
            help="Let the TPM seal the private key, for use on this machine alone (tpm2-tools). Default: do not.",
        ),
    ] = False,
    pcrs: Annotated[
        str | None,
        typer.Option(
            "--pcrs",
            metavar="BANK:LIST",
            help="With --tpm: PCRs that must be as now when it releases the key, as sha256:0,7. Default: none.",
        ),
    ] = None,
) -> None:
    """Make a pair of Ed25519 keys: FILE to seal with, readable by its owner alone, and FILE.pub to verify with.

    Both are PEM, as OpenSSL reads and writes them. A file that exists is never replaced.
    """
    if pcrs is not None and not tpm:
        raise typer.BadParameter("PCRs are those of a TPM; give --tpm as well", param_hint="--pcrs")
    key = make_keys(file, tpm=tpm, pcrs=pcrs or "")
    output.answer(seal_key_document(str(file), key.key_id, tpm, pcrs), seal_key_text)
