# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut isf SOURCE`: the symbol file of the kernel in a source, for Volatility 3."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from hibernaut import __version__
from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument, refuse_same_file
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.errors import HibernautError
from hibernaut.kernel.isf import ISF_ENDINGS, isf_bytes, isf_document
from hibernaut.kernel.kernel import Kernel
from hibernaut.report.symbol_file import symbol_file_document, symbol_file_text
from hibernaut.volumes.output import write_file

__all__ = ["isf"]

NOT_IN_NAMES = re.compile(r"[^\w.+~-]", re.ASCII)
"""Characters of a release, which comes from memory, that a default name has not."""


def isf(
    source: SourceArgument,
    options: MemoryOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File to make; it ends in .json, .json.xz, .json.gz or .json.bz2. Default: linux-RELEASE.json.xz "
            "here, unless it exists.",
        ),
    ] = None,
) -> None:
    """Write Volatility 3's symbol file (ISF) of the kernel in a dump or an image, without debug packages.

    Types are those of the BTF of the kernel and its loaded modules, and of a table of global variables; symbols are
    those of its kallsyms, at the addresses of vmlinux. `vol -s FOLDER` finds the file by the kernel's banner.

    Of a damaged or used-up image the file is whole, or there is none: it needs BTF, kallsyms and the banner. Modules
    whose types are lost are left out, with a remark.
    """
    if out is not None:
        refuse_same_file(out, source)
        _ending(out)
    with salvage.open_memory(options, source, output.quiet) as plain, salvage.naming_the_loss(plain):
        opened, _ = options.with_tables(plain, ["raw"], output.quiet)
        kernel = Kernel.of(opened)
        made = out or Path(f"linux-{NOT_IN_NAMES.sub('_', kernel.release)}.json.xz")
        if out is None and made.exists():
            raise HibernautError(f"{made} exists", advice="give a name with --out")
        isf_made = isf_document(kernel, __version__)
        data = isf_bytes(isf_made, _ending(made))
        write_file(made, data)
        document = symbol_file_document(opened, kernel, isf_made, str(made), len(data))
    output.answer(document, symbol_file_text)
    salvage.exit_unless_whole(opened)


def _ending(path: Path) -> str:
    """Return the ending of a symbol file's name. Raises BadParameter if Volatility does not take it for one."""
    found = next((ending for ending in ISF_ENDINGS if path.name.endswith(ending)), None)
    if found is None:
        raise typer.BadParameter(
            f"{path.name} has no ending of a symbol file; expected {', '.join(ISF_ENDINGS)}", param_hint="--out"
        )
    return found
