# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut doctor`: whether a machine hibernates, whether it comes back, and why not."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.failure import BAD_NEWS
from hibernaut.cli.options import MemoryOptions, OutputOptions, gaps_of
from hibernaut.cli.progress import page_progress
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.doctor.checks.table import examine_facts
from hibernaut.doctor.evidence import Evidence, RootFolder
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.gather import (
    AttachedFiles,
    facts_of_files,
    facts_of_root,
    joined_facts,
    with_counts_of_now,
    with_facts_of_log,
)
from hibernaut.doctor.source_facts import SourceFacts, source_facts
from hibernaut.errors import FormatError, HibernautError
from hibernaut.report.diagnosis import diagnosis_document, diagnosis_text
from hibernaut.volumes.files import KCORE
from hibernaut.volumes.volume import close_volume

__all__ = ["doctor"]

FILES_SECTION = "Files of a report"


def doctor(
    options: MemoryOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Root of a mounted disk, or / for the running system besides files. Default: the running system, if "
            "no file is given.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            metavar="SOURCE",
            help="Swap area with or without an image, its disk, or a dump of memory. Default: none.",
        ),
    ] = None,
    dmesg: Annotated[
        list[Path] | None,
        typer.Option(
            "--dmesg",
            metavar="FILE",
            rich_help_panel=FILES_SECTION,
            help="Kernel log of a boot; repeatable, the oldest boot first. Default: none.",
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="FILE",
            rich_help_panel=FILES_SECTION,
            help="Journal of one boot or more, as `journalctl -o export` or `-o json` prints it. Default: none.",
        ),
    ] = None,
    cmdline: Annotated[Path | None, typer.Option(
        "--cmdline", metavar="FILE", rich_help_panel=FILES_SECTION, help="Copy of /proc/cmdline. Default: none.")
    ] = None,
    swaps: Annotated[Path | None, typer.Option(
        "--swaps", metavar="FILE", rich_help_panel=FILES_SECTION, help="Copy of /proc/swaps. Default: none.")
    ] = None,
    meminfo: Annotated[Path | None, typer.Option(
        "--meminfo", metavar="FILE", rich_help_panel=FILES_SECTION, help="Copy of /proc/meminfo. Default: none.")
    ] = None,
    config: Annotated[Path | None, typer.Option(
        "--config", metavar="FILE", rich_help_panel=FILES_SECTION,
        help="Configuration of the kernel, such as /boot/config-RELEASE or /proc/config.gz. Default: none.")
    ] = None,
) -> None:  # fmt: skip
    """Tell whether a machine will hibernate, whether it will come back, and why not.

    Reads, and never writes: the running system, a mounted root, or files that a user attaches to a report. Each check
    is ok, a warning, would fail, or not known. --consumed compares an image that a boot has used up with this machine:
    it shows why the boot refused it.

    The exit status is 1 if a check would fail.
    """
    if salvage.wanted and image is None:
        raise typer.BadParameter("--consumed, --salvage and --map-block are for an image that --image names")
    files = AttachedFiles(
        logs=(*(dmesg or ()), *((journal,) if journal else ())),
        command_line=cmdline,
        swaps=swaps,
        meminfo=meminfo,
        config=config,
    )
    facts = facts_of_files(files)
    examines_running = False
    if root is not None or not (files.any or image):
        folder = _root(root)
        examines_running = folder.is_running
        facts = joined_facts(facts, facts_of_root(folder))
    facts = with_facts_of_log(facts)
    with ExitStack() as stack:
        if image is None and examines_running and os.access(KCORE, os.R_OK):
            with suppress(HibernautError, OSError):  # its checks are not known then
                facts = joined_facts(Facts(source=_source(stack, KCORE, options, salvage, output.quiet)), facts)
                facts = with_counts_of_now(facts, RootFolder())
        if image is not None:
            facts = joined_facts(Facts(source=_source(stack, image, options, salvage, output.quiet)), facts)
        document = diagnosis_document(examine_facts(facts))
    output.answer(document, diagnosis_text)
    if document["outcome"] == "would fail":
        raise typer.Exit(BAD_NEWS)


def _root(path: Path | None) -> RootFolder:
    """Return the root folder. Raises FormatError, OSError if it is not a folder."""
    root = Path("/") if path is None else path
    if not root.exists():
        raise FormatError("there is no such folder", source=str(root), advice="give the root of a mounted disk")
    if not root.is_dir():
        raise FormatError("this is not a folder", source=str(root), advice="give the root of a mounted disk")
    return RootFolder(root.resolve())


def _source(
    stack: ExitStack, path: Path, options: MemoryOptions, salvage: SalvageOptions, quiet: bool
) -> Evidence[SourceFacts]:
    """Return the facts of the image or dump. Raises FormatError, OSError."""
    volume, offset = options.place(path)
    stack.callback(close_volume, volume)
    advance = stack.enter_context(page_progress(f"reading {path}", None, quiet))
    found = source_facts(
        stack,
        volume,
        offset=offset,
        partition=options.partition,
        base=options.base,
        gaps=gaps_of(options.gap),
        cr3=options.cr3,
        levels=options.levels,
        read_salvaged=partial(salvage.read, options) if salvage.wanted else None,
        progress=advance,
    )
    return Evidence(found, str(path))
