# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut lab`: real kernels under QEMU."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.common import (
    JsonOption,
    OffsetOption,
    PartitionOption,
    QuietOption,
    console,
    expand_options,
    print_json,
    say,
)
from hibernaut.cli.save import Compressor
from hibernaut.lab.cases.table import QUICK, Result, cases_of, prove
from hibernaut.lab.golden import make_golden
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.doctor import cures, examine
from hibernaut.lab.host.kernels import KERNEL_LINES, Kernel, get_kernel, kernel_of_files, line_named
from hibernaut.lab.scenario import (
    IMAGE_NAME,
    LOG_NAME,
    RECORD_NAME,
    SPARE_NAME,
    Hibernated,
    Lab,
    Record,
    Resumed,
    Stop,
    Up,
)
from hibernaut.lab.takeover import take_over
from hibernaut.lab.variants import MOST_REGIONS, REGIONS, VARIANTS, Swap, Variant, variant_named
from hibernaut.lab.vm.qemu import Disk, command_text, usable_accelerator
from hibernaut.report.text import columns, doctor_text, support_page, support_text
from hibernaut.volumes.output import write_file

__all__ = ["DryRunOption", "Place", "lab", "takeover", "workshop"]

lab = typer.Typer(
    help="Real kernels under QEMU: boot, hibernate, dump, resume, and prove what hibernaut claims.",
    no_args_is_help=True,
    add_completion=False,
)

USUAL_KERNEL = "6.1"
KernelOption = Annotated[
    str,
    typer.Option(
        "--kernel",
        metavar="LINE|VMLINUZ",
        show_default=False,
        help=f"One of Debian's: {', '.join(KERNEL_LINES)}; with --modules, a bzImage of your own. "
        f"Default: {USUAL_KERNEL}, or the guest's own.",
    ),
]
ModulesOption = Annotated[
    Path | None,
    typer.Option("--modules", metavar="DIR", help="Your own kernel's lib/modules/RELEASE, or its root."),
]
VariantOption = Annotated[
    str, typer.Option("--variant", metavar="NAME", help="Which guest; `lab variants` lists them.")
]
MemoryOption = Annotated[
    int | None, typer.Option("--memory", min=128, metavar="MIB", help="The guest's memory. Default: the variant's.")
]
LevelsOption = Annotated[
    int | None, typer.Option("--levels", min=4, max=5, help="Levels of paging. Default: the variant's.")
]
KaslrOption = Annotated[
    bool | None, typer.Option("--kaslr/--no-kaslr", help="Whether the kernel moves itself. Default: the variant's.")
]
CompressorOption = Annotated[
    Compressor | None, typer.Option("--compressor", help="Of the kernel's image. Default: the variant's.")
]
SwapOption = Annotated[
    Swap | None, typer.Option("--swap", help="Where the guest swaps and hibernates to. Default: the variant's.")
]
RegionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--region",
        metavar="SIZE:ORDER",
        help=f"What is taken out of the direct map, ORDER where its PMD table lies; repeatable: {', '.join(REGIONS)}.",
    ),
]
FailOption = Annotated[
    int | None,
    typer.Option("--fail-allocations", min=0, max=512, help="How many allocations for a split fail during the copy."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="DIR", envvar="HIBERNAUT_LAB_CACHE", help="Where kernels and what is built are kept."
    ),
]
MirrorOption = Annotated[
    str | None, typer.Option("--mirror", metavar="URL", help="Mirror of Debian's archive. Default: as apt is set up.")
]
AccelOption = Annotated[
    str, typer.Option("--accel", metavar="NAME", help="tcg; kvm; or auto: kvm if a trial boot works.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print QEMU's command line and touch nothing.")]


@dataclass(frozen=True)
class Place:
    """Where a laboratory is: its kernel, its cache, how it runs."""

    kernel: KernelOption = ""
    modules: ModulesOption = None
    cache: CacheOption = None
    mirror: MirrorOption = None
    accel: AccelOption = "tcg"

    def lab(self, usual: str = USUAL_KERNEL) -> Lab:
        """The laboratory, its kernel downloaded if need be; `usual` is the kernel if none is named."""
        if self.accel not in ("tcg", "kvm", "auto"):
            raise typer.BadParameter(f"{self.accel!r} is none of tcg, kvm, auto", param_hint="--accel")
        store = Cache(self.cache)
        if self.modules is not None:
            if not self.kernel:
                raise typer.BadParameter("belongs to a kernel of your own: --kernel VMLINUZ", param_hint="--modules")
            found = kernel_of_files(Path(self.kernel), self.modules)
        else:
            found = get_kernel(store, line_named(self.kernel or usual), self.mirror)
        return Lab(found, store, usable_accelerator(self.accel, found.vmlinuz), self.mirror)

    def dry_run(self, variant: Variant, folder: Path, *, gdb: bool = False, usual: str = USUAL_KERNEL) -> None:
        """Print QEMU's command line for a guest and touch nothing: the kernel may not even be here yet."""
        name = self.kernel or usual
        vmlinuz = Path(name if self.modules else f"vmlinuz-{line_named(name).name}")
        pretended = Lab(Kernel(name, name, vmlinuz, Path("MODULES")))
        disks = [Disk(folder / IMAGE_NAME, keep=True), Disk(folder / SPARE_NAME, keep=True)]
        typer.echo(command_text(pretended.hardware(variant, folder, disks, "SESSION", gdb)))


def _regions(wanted: list[str]) -> tuple[str, ...]:
    for one in wanted:
        if one not in REGIONS:
            raise typer.BadParameter(f"{one!r} is none of {', '.join(REGIONS)}", param_hint="--region")
    if len(wanted) > MOST_REGIONS:
        raise typer.BadParameter(f"more than {MOST_REGIONS} regions", param_hint="--region")
    return tuple(wanted)


@dataclass(frozen=True)
class Wish:
    """Which guest."""

    variant: VariantOption = "lzo"
    memory: MemoryOption = None
    levels: LevelsOption = None
    kaslr: KaslrOption = None
    compressor: CompressorOption = None
    swap: SwapOption = None
    region: RegionOption = None
    fail_allocations: FailOption = None

    def guest(self) -> Variant:
        """The variant with what was changed in it. Raises LabUnavailable."""
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


@dataclass(frozen=True)
class TakeoverWish(Wish):
    """Which guest; where the stock kernel dies, if nobody says otherwise."""

    variant: VariantOption = "hole-2m-fails"


@contextmanager
def workshop(keep: Path | None) -> Iterator[Path]:
    """A folder for disks and dumps: the one to keep them in, new or empty; else a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="hibernaut-") as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty", param_hint="DIR")
    yield keep


@lab.command()
def doctor(cache: CacheOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Say what is here, what is missing, and the commands that bring it; exit status 1 if it is not ready."""
    found = examine(Cache(cache))
    commands = cures(found)
    ready = all(one.there for one in found if one.need.required)
    rows = [
        {"name": one.need.name, "purpose": one.need.purpose, "required": one.need.required, "there": one.there,
         "where": one.where}
        for one in found
    ]  # fmt: skip
    document = {"ready": ready, "found": rows, "cures": commands}
    if json:
        print_json(document)
    elif not quiet:
        console().print(doctor_text(document))
    if not ready:
        raise typer.Exit(1)


@lab.command()
def variants(json: JsonOption = False) -> None:
    """List the guests there are."""
    if json:
        print_json({"variants": [dataclasses.asdict(one) for one in VARIANTS]})
    else:
        console().print("\n".join(columns([one.name, one.what] for one in VARIANTS)))


@lab.command()
@expand_options
def boot(
    *,
    run: Annotated[
        list[str] | None, typer.Option("--run", metavar="COMMAND", help="A command for the guest's shell; repeatable.")
    ] = None,
    wish: Wish,
    place: Place,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Boot a guest, run commands in it, end it; status 1 if one of them fails."""
    guest_kind = wish.guest()
    if dry_run:
        return place.dry_run(guest_kind, Path("DIR"))
    laboratory = place.lab()
    answers: list[dict[str, Any]] = []
    with workshop(None) as folder, laboratory.boot(guest_kind, folder, []) as guest:
        for command in run or ["uname -a", "grep ^DirectMap /proc/meminfo"]:
            reply = guest.port.ask(command)
            answers.append({"command": command, "status": reply.status, "lines": list(reply.lines)})
    if json:
        print_json({"kernel": laboratory.kernel.release, "answers": answers})
    elif not quiet:
        console().print("\n".join(line for answer in answers for line in answer["lines"]))
    if any(answer["status"] for answer in answers):
        raise typer.Exit(1)
    return None


@lab.command()
@expand_options
def hibernate(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder for image, record and log.")],
    wish: Wish,
    dump_before: Annotated[
        bool, typer.Option("--dump-before", help="Also dump RAM right before the copy loop: before.elf.")
    ] = False,
    dump_after: Annotated[
        bool, typer.Option("--dump-after", help="Also dump RAM right after the copy loop: after.elf.")
    ] = False,
    place: Place,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Boot a guest, fill its memory with pages that name themselves, let it hibernate; status 1 if it does not."""
    guest_kind = wish.guest()
    if dry_run:
        return place.dry_run(guest_kind, folder, gdb=dump_before or dump_after)
    laboratory = place.lab()
    with workshop(folder):
        stop = Stop(folder / "before.elf" if dump_before else None, folder / "after.elf" if dump_after else None)
        done = laboratory.hibernate(guest_kind, folder, stop)
        write_file(folder / LOG_NAME, done.log.encode())
    _tell_hibernated(done, json, quiet)
    return None


def _tell_hibernated(done: Hibernated, json: bool, quiet: bool) -> None:
    record = done.record
    if json:
        document = {
            "outcome": done.outcome,
            "reason": done.reason,
            "image": str(done.image),
            "seconds": round(done.seconds, 1),
            "record": dataclasses.asdict(record),
        }
        print_json(document)
    elif not quiet:
        pages = "" if record.saved_pages is None else f", {record.saved_pages} pages"
        reason = f": {done.reason}" if done.reason else ""
        console().print(f"Linux {record.release}: {done.outcome}{pages} in {done.seconds:.0f} s{reason}\n{done.image}")
    if done.outcome != "hibernated":
        raise typer.Exit(1)


@lab.command()
@expand_options
def resume(
    *,
    image: Annotated[Path, typer.Argument(help="A disk with an image of a laboratory guest, or the folder it is in.")],
    record: Annotated[
        Path | None, typer.Option("--record", metavar="DIR", help="The guest's folder, if IMAGE is elsewhere.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="vda: in place of the guest's own disk. vdb: beside it.")
    ] = "vda",
    dump: Annotated[Path | None, typer.Option("--dump", metavar="FILE", help="RAM of the resumed guest.")] = None,
    memory: Annotated[int, typer.Option("--memory", min=64, metavar="MIB", help="Of a stranger's machine.")] = 256,
    levels: Annotated[int, typer.Option("--levels", min=4, max=5, help="Of a stranger's machine.")] = 4,
    partition: PartitionOption = None,
    offset: OffsetOption = 0,
    place: Place,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Boot a fresh machine on a copy of a disk and let its kernel resume; PASS if the guest finds everything as it was.

    The kernel is the one that hibernated, if --kernel names no other. A disk without a guest's record beside it is a
    stranger's: it can be resumed (then --memory, --levels, --partition and --offset count), but not verified.
    """
    folder = record or (image if image.is_dir() else image.parent)
    if device not in ("vda", "vdb"):
        raise typer.BadParameter(f"{device!r} is neither vda nor vdb", param_hint="--device")
    if dump and dump.exists():
        raise typer.BadParameter(f"{dump} is there already", param_hint="--dump")
    if record is None and image.is_file() and not (folder / RECORD_NAME).exists():
        stranger = Variant("stranger", "a machine that is not the laboratory's", memory_mib=memory, levels=levels)
        if dry_run:
            return place.dry_run(stranger, folder)
        laboratory = place.lab()
        with workshop(None) as shop:
            resumed = laboratory.resume_stranger(stranger, image.absolute(), shop, partition=partition, offset=offset)
        return _tell_resumed(resumed, json, quiet)
    saved = Record.load(folder)
    disk = image / IMAGE_NAME if image.is_dir() else image
    own = folder / IMAGE_NAME
    disks = [disk, folder / SPARE_NAME] if device == "vda" else [own, disk]
    for path in disks:
        if not path.is_file():
            raise FileNotFoundError(2, "No such file or directory", str(path))
    if dry_run:
        return place.dry_run(saved.variant, folder, usual=saved.kernel)
    laboratory = place.lab(saved.kernel)
    on_own = device == "vda"
    with workshop(None) as shop:
        done = laboratory.resume(
            saved,
            disks,
            shop,
            device=device,
            partition=saved.partition if on_own else None,
            offset=saved.offset if on_own else 0,
            dump=dump,
        )
    _tell_resumed(done, json, quiet)
    return None


def _tell_resumed(done: Resumed, json: bool, quiet: bool) -> None:
    if json:
        print_json(
            {"passed": done.passed, "reason": done.reason, "seconds": round(done.seconds, 1), "facts": done.facts}
        )
    elif not quiet:
        console().print(f"{'PASS' if done.passed else 'FAIL'} {done.reason} ({done.seconds:.0f} s)")
    if not done.passed:
        raise typer.Exit(1)


@lab.command()
@expand_options
def dump(
    *,
    out: Annotated[Path, typer.Argument(help="The ELF core to make.")],
    wish: Wish,
    place: Place,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Dump the RAM of a guest that is ready to hibernate, memory filled, regions taken out."""
    guest_kind = wish.guest()
    if dry_run:
        return place.dry_run(guest_kind, out.parent)
    if out.exists():
        raise typer.BadParameter(f"{out} is there already", param_hint="OUT")
    laboratory = place.lab()
    out.parent.mkdir(parents=True, exist_ok=True)

    def take(guest: Up) -> None:
        guest.qemu.execute("stop")
        guest.qemu.dump(out)

    with workshop(None) as folder:
        record = laboratory.ready(guest_kind, folder, take)
    if json:
        print_json({"dump": str(out), "record": dataclasses.asdict(record)})
    elif not quiet:
        console().print(f"{out}: RAM of Linux {record.release}, {guest_kind.what}")
    return None


@lab.command()
@expand_options
def golden(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where images, dumps and expected.json go.")],
    place: Place,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make test data from a real kernel: images, RAM dumps, and what the guest says a reader must find in them."""
    if dry_run:
        return place.dry_run(variant_named("lzo"), folder, gdb=True)
    laboratory = place.lab()
    folder.mkdir(parents=True, exist_ok=True)
    with workshop(None) as shop:
        expected = make_golden(laboratory, folder, shop, lambda text: say(text, quiet))
    if json:
        print_json(expected)
    elif not quiet:
        console().print("\n".join(f"{folder / name}.zst" for name in expected))
    return None


@lab.command("prove")
def prove_(
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", metavar="LINE", help="A kernel; repeatable. Default: all.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="TEXT", help="Cases with this in their name; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Linux 6.1: reading, rewriting, the takeover.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="How many guests at a time.")] = 2,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Keep the table as a page (docs/support.md).")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep disks, dumps and records there.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    cache: CacheOption = None,
    mirror: MirrorOption = None,
    accel: AccelOption = "tcg",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run every case on every kernel and print the table; status 1 unless all pass."""
    if write and not write.absolute().parent.is_dir():
        raise typer.BadParameter(f"no folder {write.parent} to write to", param_hint="--write")
    if keep and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty", param_hint="--keep")
    cases = cases_of(QUICK if quick and not case else case)
    lines = kernel or ([USUAL_KERNEL] if quick else list(KERNEL_LINES))
    if list_:
        return console().print("\n".join(columns([one.name, one.must] for one in cases)))
    if dry_run:
        for name in lines:
            Place(name).dry_run(variant_named("lzo"), Path("DIR"), gdb=True)
        return None
    labs = [Place(name, cache=cache, mirror=mirror, accel=accel).lab() for name in lines]
    results = []
    for result in prove(labs, cases, jobs, keep):
        results.append(result)
        say(f"{result.word}  {result.kernel}  {result.case}  {result.seconds:.0f} s", quiet or json)
    document = {"passed": all(one.passed for one in results), "results": [_row(one) for one in results]}
    if write:
        write_file(write, support_page(document).encode(), public=True)
    if json:
        print_json(document)
    elif not quiet:
        console().print(support_text(document))
    if not document["passed"]:
        raise typer.Exit(1)
    return None


def _row(result: Result) -> dict[str, Any]:
    return {**dataclasses.asdict(result), "seconds": round(result.seconds), "result": result.word}


@expand_options
def takeover(
    *,
    wish: TakeoverWish,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep disks, dumps and images in this new folder.")
    ] = None,
    resume_stock: Annotated[
        bool, typer.Option("--resume-stock", help="Also resume from the kernel's own image, if it makes one.")
    ] = False,
    place: Place,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Stop a real kernel before it copies anything, save it through the fixmap, resume a stock kernel from that.

    A guest hibernates under QEMU up to the copy loop of swsusp_save. There its RAM is dumped. Then it goes on by
    itself, for comparison; and from the dump alone an image is built on a second disk, from which a fresh machine
    resumes. PASS if the resumed guest finds all its pages and its direct map as they were. Needs what `hibernaut lab
    doctor` asks for.
    """
    guest_kind = wish.guest()
    if dry_run:
        return place.dry_run(guest_kind, keep or Path("DIR"), gdb=True)
    laboratory = place.lab()
    steps: list[tuple[str, str]] = []

    def tell(step: str, what: str) -> None:
        steps.append((step, what))
        if not (json or quiet):
            console().print(f"{step:12}{what}")

    with workshop(keep) as folder:
        taken = take_over(laboratory, guest_kind, folder, resume_stock=resume_stock, tell=tell)
    if json:
        print_json(
            {
                "passed": taken.passed,
                "kernel": laboratory.kernel.release,
                "variant": guest_kind.name,
                "steps": [{"step": step, "what": what} for step, what in steps],
                "stock": {"outcome": taken.stock.outcome, "reason": taken.stock.reason},
                "stock_resumed": taken.stock_resumed and taken.stock_resumed.reason,
                "resumed": taken.resumed.reason,
                "direct_map_findings": [str(one) for one in taken.findings],
            }
        )
    elif not quiet:
        console().print("PASS" if taken.passed else "FAIL")
    if not taken.passed:
        raise typer.Exit(1)
    return None
