# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that the commands of the laboratory share."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hibernaut.cli.save import Compressor
from hibernaut.cli.terminal import print_text
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import KERNEL_LINES, Kernel, get_kernel, kernel_of_files, line_named
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.record import IMAGE_NAME, SPARE_NAME
from hibernaut.lab.variants import MAX_REGIONS, REGIONS, Swap, Variant, variant_named
from hibernaut.lab.vm.qemu import Disk, command_text, usable_accelerator

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
    "workshop",
]

DEFAULT_KERNEL = "6.1"
ACCELERATORS = ("tcg", "kvm", "auto")

KernelOption = Annotated[
    str,
    typer.Option(
        "--kernel",
        metavar="LINE|VMLINUZ",
        show_default=False,
        help=f"Kernel line to boot: {', '.join(KERNEL_LINES)}; with --modules, a bzImage of your "
        f"own. Default: {DEFAULT_KERNEL}, or the guest's own.",
    ),
]
ModulesOption = Annotated[
    Path | None,
    typer.Option(
        "--modules", metavar="DIR", help="Modules of your own kernel: its lib/modules/RELEASE, or the folder above lib."
    ),
]
VariantOption = Annotated[
    str, typer.Option("--variant", metavar="NAME", help="Kind of guest; `hibernaut lab variants` lists them.")
]
MemoryOption = Annotated[
    int | None, typer.Option("--memory", min=128, metavar="MIB", help="Memory of the guest. Default: the variant's.")
]
LevelsOption = Annotated[
    int | None, typer.Option("--levels", min=4, max=5, help="Levels of paging. Default: the variant's.")
]
KaslrOption = Annotated[
    bool | None,
    typer.Option("--kaslr/--no-kaslr", help="Randomize the kernel's addresses, or not. Default: the variant's."),
]
CompressorOption = Annotated[
    Compressor | None, typer.Option("--compressor", help="Compressor of the kernel's image. Default: the variant's.")
]
SwapOption = Annotated[
    Swap | None, typer.Option("--swap", help="Place that the guest swaps and hibernates to. Default: the variant's.")
]
RegionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--region",
        metavar="SIZE:ORDER",
        help=f"Region to take out of the direct map; ORDER is the position of its PMD table. Repeatable. "
        f"One of {', '.join(REGIONS)}. Default: the variant's.",
    ),
]
FailOption = Annotated[
    int | None,
    typer.Option(
        "--fail-allocations",
        min=0,
        max=512,
        help="Number of allocations for a split that fail during the copy. Default: the variant's.",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        envvar="HIBERNAUT_LAB_CACHE",
        help="Folder for downloaded kernels and built programs. Default: ~/.cache/hibernaut/lab.",
    ),
]
MirrorOption = Annotated[
    str | None,
    typer.Option("--mirror", metavar="URL", help="Mirror of Debian's archive. Default: as apt is configured."),
]
AccelOption = Annotated[
    str,
    typer.Option("--accel", metavar="NAME", help="Accelerator of QEMU: tcg, kvm, or auto (kvm if it works)."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print QEMU's command line; boot, download and write nothing.")
]
KeepOption = Annotated[
    Path | None,
    typer.Option("--keep", metavar="DIR", help="Folder, new or empty, that keeps disks, dumps and records."),
]


@dataclass(frozen=True)
class LabOptions:
    """Options that choose a laboratory: its kernel, its cache, its accelerator."""

    kernel: KernelOption = ""
    modules: ModulesOption = None
    cache: CacheOption = None
    mirror: MirrorOption = None
    accel: AccelOption = "tcg"

    def lab(self, default_kernel: str = DEFAULT_KERNEL) -> Lab:
        """Return the laboratory; its kernel is downloaded if necessary."""
        if self.accel not in ACCELERATORS:
            raise typer.BadParameter(f"{self.accel!r} is none of {', '.join(ACCELERATORS)}", param_hint="--accel")
        store = Cache(self.cache)
        if self.modules is not None:
            if not self.kernel:
                raise typer.BadParameter("needs a kernel of your own; add --kernel VMLINUZ", param_hint="--modules")
            found = kernel_of_files(Path(self.kernel), self.modules)
        else:
            found = get_kernel(store, line_named(self.kernel or default_kernel), self.mirror)
        return Lab(found, store, usable_accelerator(self.accel, found.vmlinuz), self.mirror)

    def dry_run(
        self, variant: Variant, folder: Path, *, gdb: bool = False, default_kernel: str = DEFAULT_KERNEL
    ) -> None:
        """Print QEMU's command line for a guest, without the kernel, which may not be downloaded yet."""
        name = self.kernel or default_kernel
        vmlinuz = Path(name if self.modules else f"vmlinuz-{line_named(name).name}")
        pretended = Lab(Kernel(name, name, vmlinuz, Path("MODULES")))
        disks = [Disk(folder / IMAGE_NAME, keep=True), Disk(folder / SPARE_NAME, keep=True)]
        print_text(command_text(pretended.hardware(variant, folder, disks, "SESSION", gdb)))


@dataclass(frozen=True)
class GuestOptions:
    """Options that choose a guest."""

    variant: VariantOption = "lzo"
    memory: MemoryOption = None
    levels: LevelsOption = None
    kaslr: KaslrOption = None
    compressor: CompressorOption = None
    swap: SwapOption = None
    region: RegionOption = None
    fail_allocations: FailOption = None

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
            raise typer.BadParameter(f"{one!r} is none of {', '.join(REGIONS)}", param_hint="--region")
    if len(wanted) > MAX_REGIONS:
        raise typer.BadParameter(f"{len(wanted)} regions; at most {MAX_REGIONS} are possible", param_hint="--region")
    return tuple(wanted)


@contextmanager
def workshop(keep: Path | None) -> Iterator[Path]:
    """Yield a folder for disks and dumps: the one to keep them in, new or empty, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="hibernaut-") as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty; give a new or empty folder", param_hint="DIR")
    yield keep
