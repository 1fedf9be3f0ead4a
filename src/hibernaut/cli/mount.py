# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut mount SOURCE DIR`: memory from any source as files that are read on demand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.cli.terminal import say
from hibernaut.mount.contents import files_of
from hibernaut.mount.fuse import require_fuse, serve, unmount_command
from hibernaut.mount.tree import VirtualFolder
from hibernaut.report.images import mount_document, mounted_text
from hibernaut.report.salvage import salvage_document, salvage_lines

__all__ = ["mount"]


def mount(
    source: SourceArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Empty folder to mount on.")],
    options: MemoryOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
) -> None:
    """Mount a dump or an image: its memory as files that are read on demand, each the one that convert writes.

    `vmcore` is an ELF core, `memory.lime` LiME, `memory.raw` raw memory; of an image, `image.json` is the document of
    inspect. The command runs until DIR is unmounted, or until it is interrupted or terminated, which unmounts it; the
    exit status is then 0. It needs the extra `mount` and FUSE.
    """
    require_fuse(directory)
    with salvage.open_memory(options, source, output.quiet) as plain:
        opened, tables = options.with_tables(plain, ["elf", "lime", "raw"], output.quiet)
        files, remarks = files_of(
            opened,
            vaddr_base=None if tables is None else tables.base,
            root=None if tables is None else tables.root,
            offset=opened.offset or options.offset,
        )
        for remark in remarks:
            say(remark, output.quiet)
        document = mount_document(opened, str(directory), list(files), None if tables is None else tables.base)
        if opened.salvaged is not None:
            document["salvage"] = salvage_document(opened.salvaged)
        unmount = shlex.join(unmount_command(directory))
        serve(
            VirtualFolder(files),
            directory,
            modified_ns=source.stat().st_mtime_ns,
            ready=lambda: output.answer(
                document, lambda done: "\n".join([mounted_text(done, unmount), *salvage_lines(done)])
            ),
            report=say,
        )
    salvage.exit_unless_whole(opened)
