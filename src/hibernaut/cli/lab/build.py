# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab build`: a kernel from source, with or without a cure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.lab.options import DEFAULT_KERNEL, CacheOption, MirrorOption
from hibernaut.cli.options import OutputOptions, among
from hibernaut.cli.progress import page_progress
from hibernaut.cli.terminal import say
from hibernaut.lab.cure.cures import STOCK, cure_named, cures
from hibernaut.lab.host.build import build_kernel, plan_build, source_of
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import KERNEL_LINES
from hibernaut.report.documents import BuildDocument, BuildPlanDocument, CuresDocument
from hibernaut.report.text import columns
from hibernaut.volumes.output import write_file

__all__ = ["build"]


def build(
    output: OutputOptions,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            metavar="LINE|DIR",
            help=f"Kernel line whose source package is built: {', '.join(KERNEL_LINES)}; or a folder with a kernel's "
            f"source, which is not written to. Default: {DEFAULT_KERNEL}.",
            autocompletion=among(KERNEL_LINES),
        ),
    ] = DEFAULT_KERNEL,
    cure: Annotated[
        str,
        typer.Option(
            "--cure",
            metavar="NAME",
            help=f"Change to the source; --list lists them. Default: {STOCK}.",
            autocompletion=among(cures),
        ),
    ] = STOCK,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            metavar="FRAGMENT",
            help="File with settings, added to the small configuration; repeatable. Default: none.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, max=1024, metavar="N", help="Jobs of make. Default: one per CPU.")
    ] = None,
    patch: Annotated[
        Path | None,
        typer.Option("--patch", metavar="FILE", help="Also write the change as a patch, to this file. Default: none."),
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="List the cures; build nothing. Default: no.")] = False,
    cache: CacheOption = None,
    mirror: MirrorOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands; download, build and write nothing. Default: no.")
    ] = False,
) -> None:
    """Build a small kernel from source, as it is or with a cure, for --tree of the laboratory's other commands.

    Stock kernel and cures of one source are built in one folder, so that another cure compiles a few files. Each result
    is kept. A wrong cure has one mistake, which the laboratory must notice.
    """
    if list_only:
        return _list(output)
    if patch and patch.exists():
        raise typer.BadParameter(f"{patch} already exists; give another name", param_hint="--patch")
    store = Cache(cache)
    plan = plan_build(store, source, cure_named(cure), config or (), jobs)
    if dry_run:
        planned: BuildPlanDocument = {"tree": str(plan.result(store)), "commands": plan.steps(store)}
        return output.answer(planned, lambda found: "\n".join(shlex.join(words) for words in found["commands"]))
    if patch:
        write_file(patch, plan.cure.patch(source_of(store, plan, mirror)).encode(errors="surrogateescape"), public=True)
    with page_progress(f"building {plan.name}, {cure}", None, not output.text) as progress:
        built = build_kernel(store, plan, mirror, progress)
    for line in built.unset:
        say(f"not in the configuration of this kernel: {line}", not output.text)
    document: BuildDocument = {
        "tree": str(built.tree),
        "release": built.release,
        "source": source,
        "cure": cure,
        "fresh": built.fresh,
        "seconds": round(built.seconds, 1),
        "unset": list(built.unset),
        "patch": str(patch) if patch else None,
    }
    say(f"Linux {built.release}, {cure}: {_effort(document)}", not output.text)
    output.answer(document, lambda done: done["tree"])
    return None


def _effort(document: BuildDocument) -> str:
    return f"built in {document['seconds']:.0f} s" if document["fresh"] else "from the cache"


def _list(output: OutputOptions) -> None:
    listed: CuresDocument = {
        "cures": [
            {"name": one.name, "what": one.what, "kind": one.kind, "noticed": one.noticed} for one in cures().values()
        ]
    }
    output.answer(
        listed, lambda found: "\n".join(columns([one["name"], one["kind"], one["what"]] for one in found["cures"]))
    )
