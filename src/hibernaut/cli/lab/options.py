# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that the commands of the laboratory share."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.options import Compressor, OutputOptions, among
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import ALL_LINES, GuestKernel, get_kernel, kernel_of_files, line_named
from hibernaut.lab.host.temporary import temporary_folder
from hibernaut.lab.host.trees import BZIMAGE, kernel_of_tree
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME
from hibernaut.lab.variants import MAX_REGIONS, REGIONS, VARIANTS, Swap, Variant, variant_named
from hibernaut.lab.vm.qemu import Disk, Hardware, planned_command, usable_accelerator
from hibernaut.report.documents import DryRunDocument, PlannedGuestDocument
from hibernaut.volumes.output import sync_file_system

__all__ = [
    "DEFAULT_KERNEL",
    "AccelOption",
    "CacheOption",
    "DryRunOption",
    "GuestOptions",
    "KeepOption",
    "LabOptions",
    "MirrorOption",
    "VariantOption",
    "show_plan",
    "workshop",
]

DEFAULT_KERNEL = "6.1"
ACCELERATORS = ("tcg", "kvm", "auto")

GUEST_SECTION = "Guest"
LAB_SECTION = "Laboratory"


def _lab_option(*names: str, text: str, **declared: Any) -> Any:
    return typer.Option(*names, rich_help_panel=LAB_SECTION, help=text, **declared)


def _guest_option(*names: str, text: str, **declared: Any) -> Any:
    return typer.Option(*names, rich_help_panel=GUEST_SECTION, help=f"{text} Default: the variant's.", **declared)


CacheOption = Annotated[
    Path | None,
    _lab_option(
        "--cache",
        metavar="DIR",
        envvar="HIBERNAUT_LAB_CACHE",
        text="Folder for downloaded kernels and built programs. Default: ~/.cache/hibernaut/lab.",
    ),
]
MirrorOption = Annotated[
    str | None,
    _lab_option("--mirror", metavar="URL", text="Mirror of Debian's archive. Default: as apt is configured."),
]
AccelOption = Annotated[
    str,
    _lab_option(
        "--accel",
        metavar="NAME",
        text="Accelerator of QEMU: tcg, kvm, or auto (kvm if it works). Default: tcg.",
        autocompletion=among(ACCELERATORS),
    ),
]
DryRunOption = Annotated[
    bool,
    _lab_option("--dry-run", text="Print QEMU's command line; boot, download and write nothing. Default: no."),
]
KeepOption = Annotated[
    Path | None,
    _lab_option(
        "--keep",
        metavar="DIR",
        text="Folder, new or empty, that keeps disks, dumps and records. Default: they are removed.",
    ),
]
VariantOption = Annotated[
    str,
    typer.Option(
        "--variant",
        metavar="NAME",
        rich_help_panel=GUEST_SECTION,
        help="Kind of guest; `hibernaut lab variants` lists them. Default: lzo.",
        autocompletion=among(one.name for one in VARIANTS),
    ),
]


@dataclass(frozen=True)
class LabOptions:
    """Options that choose a laboratory: its kernel, its cache, its accelerator."""

    kernel: Annotated[
        str,
        _lab_option(
            "--kernel",
            metavar="LINE|VMLINUZ",
            text=f"Kernel line to boot: {', '.join(ALL_LINES)}; with --modules, a bzImage of your own. "
            f"Default: {DEFAULT_KERNEL}, or that of the guest's record.",
            autocompletion=among(ALL_LINES),
        ),
    ] = ""
    modules: Annotated[
        Path | None,
        _lab_option(
            "--modules",
            metavar="DIR",
            text="Modules of your own kernel: its lib/modules/RELEASE, or the folder above lib. Default: none.",
        ),
    ] = None
    tree: Annotated[
        Path | None,
        _lab_option(
            "--tree",
            metavar="BUILD-DIR",
            text="Kernel to boot: that of a tree that `make` or `hibernaut lab build` built. Default: none.",
        ),
    ] = None
    cache: CacheOption = None
    mirror: MirrorOption = None
    accel: AccelOption = "tcg"

    def lab(self, default_kernel: str = DEFAULT_KERNEL) -> Lab:
        """Return the laboratory; its kernel is downloaded if necessary."""
        if self.accel not in ACCELERATORS:
            raise typer.BadParameter(
                f"unknown accelerator {self.accel!r}; expected {', '.join(ACCELERATORS)}", param_hint="--accel"
            )
        store = Cache(self.cache)
        if self.tree is not None:
            if self.kernel or self.modules:
                raise typer.BadParameter("names a kernel; leave out --kernel and --modules", param_hint="--tree")
            found = kernel_of_tree(self.tree)
        elif self.modules is not None:
            if not self.kernel:
                raise typer.BadParameter("needs a kernel of your own; give --kernel VMLINUZ", param_hint="--modules")
            found = kernel_of_files(Path(self.kernel), self.modules)
        else:
            found = get_kernel(store, line_named(self.kernel or default_kernel), self.mirror)
        return Lab(found, store, usable_accelerator(self.accel, found.vmlinuz), self.mirror)

    def planned(
        self,
        variant: Variant,
        folder: Path,
        *,
        gdb: bool = False,
        default_kernel: str = DEFAULT_KERNEL,
        adapt: Callable[[Hardware], Hardware] = lambda hardware: hardware,
    ) -> PlannedGuestDocument:
        """Return QEMU's command line for a guest, without the kernel, which may not be downloaded yet."""
        if self.tree is not None:
            name, vmlinuz = str(self.tree), self.tree / BZIMAGE
        else:
            name = self.kernel or default_kernel
            vmlinuz = Path(name if self.modules else f"vmlinuz-{line_named(name).name}")
        pretended = Lab(GuestKernel(name, name, vmlinuz, Path("MODULES")))
        disks = [Disk(folder / IMAGE_NAME, keep=True), Disk(folder / SPARE_NAME, keep=True)]
        hardware = pretended.hardware(variant, folder, disks, "SESSION", gdb)
        return {"kernel": name, "command": planned_command(adapt(hardware))}


@dataclass(frozen=True)
class GuestOptions:
    """Options that choose a guest."""

    variant: VariantOption = "lzo"
    memory: Annotated[
        int | None, _guest_option("--memory", min=128, max=1 << 20, metavar="MIB", text="Memory of the guest.")
    ] = None
    levels: Annotated[int | None, _guest_option("--levels", min=4, max=5, metavar="4|5", text="Levels of paging.")] = (
        None
    )
    kaslr: Annotated[
        bool | None, _guest_option("--kaslr/--no-kaslr", text="Randomize the kernel's addresses, or not.")
    ] = None
    compressor: Annotated[
        Compressor | None, _guest_option("--compressor", text="Compressor of the kernel's image.")
    ] = None
    swap: Annotated[Swap | None, _guest_option("--swap", text="Place that the guest swaps and hibernates to.")] = None
    region: Annotated[
        list[str] | None,
        _guest_option(
            "--region",
            metavar="SIZE:ORDER",
            text="Region to take out of the direct map; ORDER is the position of its PMD table. Repeatable. "
            f"One of {', '.join(REGIONS)}.",
        ),
    ] = None
    fail_allocations: Annotated[
        int | None,
        _guest_option(
            "--fail-allocations",
            min=0,
            max=512,
            metavar="N",
            text="Number of allocations for a split that fail during the copy.",
        ),
    ] = None

    def guest(self) -> Variant:
        """Return the variant with the options applied. Raises LabUnavailable if it is unknown."""
        chosen = variant_named(self.variant)
        return dataclasses.replace(
            chosen,
            memory_mib=self.memory or chosen.memory_mib,
            levels=self.levels or chosen.levels,
            kaslr=chosen.kaslr if self.kaslr is None else self.kaslr,
            compressor=self.compressor or chosen.compressor,
            swap=self.swap or chosen.swap,
            regions=_regions(self.region) if self.region else chosen.regions,
            fail_allocations=chosen.fail_allocations if self.fail_allocations is None else self.fail_allocations,
        )


def _regions(wanted: list[str]) -> tuple[str, ...]:
    for one in wanted:
        if one not in REGIONS:
            raise typer.BadParameter(f"unknown region {one!r}; expected {', '.join(REGIONS)}", param_hint="--region")
    if len(wanted) > MAX_REGIONS:
        raise typer.BadParameter(f"{len(wanted)} regions; expected at most {MAX_REGIONS}", param_hint="--region")
    return tuple(wanted)


def show_plan(output: OutputOptions, *planned: PlannedGuestDocument) -> None:
    """Print the answer of --dry-run: QEMU's command line for each guest."""

    def text(document: DryRunDocument) -> str:
        return "\n".join(shlex.join(guest["command"]) for guest in document["guests"])

    document: DryRunDocument = {"guests": list(planned)}
    output.answer(document, text)


@contextmanager
def workshop(keep: Path | None) -> Iterator[Path]:
    """Yield a folder for disks and dumps: the one to keep them in, new or empty, or a temporary one.

    What is kept belongs together, a disk and the record of its guest, and QEMU syncs no disk: all of it is synced at
    the end.
    """
    if keep is None:
        with temporary_folder("workshop") as folder:
            yield folder
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty; give a new or empty folder", param_hint="DIR")
    yield keep
    sync_file_system(keep)
