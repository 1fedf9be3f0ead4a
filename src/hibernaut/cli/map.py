# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut map SOURCE`: the direct map of a machine, and its holes."""

from __future__ import annotations

from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument
from hibernaut.cli.picture_options import PictureOptions
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.linux.source_tables import direct_map_under
from hibernaut.report.page_tables import map_document
from hibernaut.report.salvage import salvage_document
from hibernaut.report.text import map_text

__all__ = ["map_"]


def map_(
    source: SourceArgument,
    options: MemoryOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    drawn: PictureOptions,
) -> None:
    """Show the direct map of a dump or an image: its base, the memory present by each size of entry, every hole."""
    drawn.check(output)
    with salvage.open_memory(options, source, output.quiet) as opened:
        paging = options.find_paging(opened, output.quiet)
        document = map_document(direct_map_under(opened, paging), paging, paging.source or opened)
        if opened.salvaged is not None:
            document["salvage"] = salvage_document(opened.salvaged)
        drawn.draw(paging.source or opened, paging, output)
    output.answer(document, map_text)
    salvage.exit_unless_whole(opened)
