# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of several commands: declared once, with one name, one help text and one meaning."""

from __future__ import annotations

import dataclasses
import getpass
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from hibernaut.cli.terminal import print_json, print_text, say
from hibernaut.errors import ContradictoryMemory, CorruptImage, FormatError, HibernautError
from hibernaut.kernel.core_file import WITH_VMCOREINFO
from hibernaut.kernel.own_vmcoreinfo import kernel_by_pointers
from hibernaut.linux.racing import racing_remark
from hibernaut.linux.rules import LINES, KernelRules, rules_for_release, rules_named
from hibernaut.linux.source_tables import Paging, direct_map_under, find_paging
from hibernaut.memory.declarations import PADDR_LIMIT
from hibernaut.memory.gaps import MemoryGap
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp import Image, open_image
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.header import SEE_CONSUMED
from hibernaut.volumes.containers import container_of
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.layers import open_volume
from hibernaut.volumes.volume import Volume

if TYPE_CHECKING:
    from hibernaut.hibernation.machine_in_source import MachineInSource

__all__ = [
    "AreaOptions",
    "Compressor",
    "ContentOptions",
    "ImageArgument",
    "LikeOptions",
    "MachineOptions",
    "MemoryOptions",
    "OutputOptions",
    "PassphraseOptions",
    "RulesOption",
    "SimulatedRulesOption",
    "SourceArgument",
    "among",
    "base_option",
    "expand_options",
    "gap_option",
    "gaps_of",
    "number",
    "offset_option",
    "partition_option",
    "refuse_same_file",
    "report_option",
]

D = TypeVar("D", bound=Mapping[str, Any])

IMAGE_SECTION = "Place of the image"
SOURCE_SECTION = "Page tables"
PAGES_SECTION = "Pages to save"
LIKE_SECTION = "Existing image"
OUTPUT_SECTION = "Output"

WHOLE_LIST = "give an image that is whole as --pages-from: a list that lacks pages would be taken for all of them"
WHOLE_LIKE = "leave out --like for a new swap area, or give an image that is whole"


def among(names: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes a value: one of these names, or several of them with commas between.

    Args:
        names: the names, or what yields them where that takes time.
    """
    listed = names if callable(names) else tuple(names)

    def complete(incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in (listed() if callable(listed) else listed)]

    return complete


def number(text: str) -> int:
    """Return a number of the command line: decimal, or hexadecimal with 0x."""
    try:
        value = int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number; expected decimal, or hexadecimal with 0x") from None
    if not 0 <= value < 1 << 64:
        raise typer.BadParameter(f"{text} does not fit; expected 0 to 2^64 - 1")
    return value


def _levels(text: str) -> int:
    if text not in ("4", "5"):
        raise typer.BadParameter(f"{text!r} is not a number of levels; expected 4 or 5")
    return int(text)


def _rules(text: str) -> KernelRules:
    try:
        return rules_named(text)
    except HibernautError:
        try:
            return rules_for_release(text)
        except HibernautError:
            names = ", ".join(one.line for one in LINES)
            raise typer.BadParameter(f"no rules for kernel {text!r}; expected {names}, or a release") from None


def offset_option(prefix: str = "", section: str = IMAGE_SECTION) -> Any:
    """Declare --offset, or with a prefix such as "like-" its counterpart for another file."""
    text = "Swap file: block of its header, the kernel's resume_offset." if not prefix else _for(prefix, "offset")
    return typer.Option(
        f"--{prefix}offset", min=0, metavar="PAGES", rich_help_panel=section, help=f"{text} Default: 0."
    )


def partition_option(prefix: str = "", section: str = IMAGE_SECTION) -> Any:
    """Declare --partition, or with a prefix its counterpart for another file."""
    text = "Whole disk: number of the partition, of its MBR or GPT." if not prefix else _for(prefix, "partition")
    default = "the file is the partition" if not prefix else "none"
    return typer.Option(
        f"--{prefix}partition", min=1, metavar="N", rich_help_panel=section, help=f"{text} Default: {default}."
    )


def base_option(prefix: str = "", section: str = IMAGE_SECTION) -> Any:
    """Declare --base, or with a prefix its counterpart for another file."""
    text = "Whole disk: byte at which the device begins." if not prefix else _for(prefix, "base")
    return typer.Option(
        f"--{prefix}base", parser=number, metavar="BYTES", rich_help_panel=section, help=f"{text} Default: 0."
    )


def gap_option(prefix: str = "", section: str = SOURCE_SECTION) -> Any:
    """Declare --gap, or with a prefix its counterpart for another file; `gaps_of` reads its values."""
    text = (
        "Raw memory: gap that the file leaves out, such as 3G+1G; repeatable; none if there is none."
        if not prefix
        else _for(prefix, "gap")
    )
    default = "as the page tables prove" if not prefix else "as they prove"
    return typer.Option(
        f"--{prefix}gap", metavar="START+SIZE", rich_help_panel=section, help=f"{text} Default: {default}."
    )


def gaps_of(values: list[str] | None, option: str = "--gap") -> tuple[MemoryGap, ...] | None:
    """Return the gaps that an option names; None if it is not given. Raises BadParameter."""
    if not values:
        return None
    if values == ["none"]:
        return ()
    found = []
    for value in values:
        match = _GAP.fullmatch(value)
        if match is None:
            raise typer.BadParameter(
                f"{value!r} is not a gap; expected START+SIZE such as 0xc0000000+1G, or none", param_hint=option
            )
        start, start_unit, size, size_unit = match.groups()
        gap = MemoryGap(int(start, 0) * _UNITS[start_unit.upper()], int(size, 0) * _UNITS[size_unit.upper()])
        if not gap.size_bytes or gap.end > PADDR_LIMIT:
            raise typer.BadParameter(f"{value} does not fit in 52 bits of addresses", param_hint=option)
        found.append(gap)
    return tuple(found)


_NUMBER = r"(0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,18})([kKmMgGtT]?)(?:i?B)?"
_GAP = re.compile(rf"{_NUMBER}\+{_NUMBER}")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _for(prefix: str, option: str) -> str:
    return f"--{option} for --{prefix.rstrip('-')}."


ImageArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE", help="Hibernation image: file of a partition or of a disk, compressed or not, or a device."
    ),
]
SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE", help="Hibernation image or RAM dump (ELF core, LiME, AVML, kdump, raw), compressed or not."
    ),
]


def _rules_option(default: str) -> Any:
    known = ", ".join(one.line for one in LINES)
    text = f"Kernel line to model: {known}, or a release. Default: {default}{LINES[0].line}."
    return typer.Option(
        "--rules", parser=_rules, metavar="KERNEL", help=text, autocompletion=among(one.line for one in LINES)
    )


RulesOption = Annotated[KernelRules | None, _rules_option("that of the kernel in SOURCE, if it can be detected; else ")]
SimulatedRulesOption = Annotated[KernelRules | None, _rules_option("")]


@dataclass(frozen=True)
class OutputOptions:
    """Options of a command's output."""

    json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT_SECTION,
            help="Print one JSON document; `hibernaut schema` describes it. Default: text.",
        ),
    ] = False
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            rich_help_panel=OUTPUT_SECTION,
            help="Print no text, remark or progress: the exit status is the answer. Default: print them.",
        ),
    ] = False

    @property
    def text(self) -> bool:
        """Whether the answer is text."""
        return not (self.json or self.quiet)

    def answer(self, document: D, text_of: Callable[[D], str]) -> None:
        """Print a document as it is or as text, or nothing. Raises as `print_text`."""
        if self.json:
            print_json(document)
        elif not self.quiet:
            print_text(text_of(document))


@dataclass(frozen=True)
class PassphraseOptions:
    """Passphrases of encrypted volumes. None is ever given on the command line, where other users read it."""

    passphrase_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--passphrase-file",
            metavar="FILE",
            rich_help_panel=IMAGE_SECTION,
            help="Encrypted volume: file with its passphrase or key; repeatable. Default: asked for, if there is "
            "a terminal.",
        ),
    ] = None
    passphrase_fd: Annotated[
        int | None,
        typer.Option(
            "--passphrase-fd",
            min=0,
            metavar="N",
            rich_help_panel=IMAGE_SECTION,
            help="Encrypted volume: descriptor from which its passphrase is read. Default: none.",
        ),
    ] = None

    def read(self, *, ask: bool = False) -> list[bytes]:
        """Return the passphrases, of a file with and without the end of its last line. Raises OSError.

        Args:
            ask: ask for one, if none is given and there is a terminal.
        """
        contents = [path.read_bytes() for path in self.passphrase_file or ()]
        if self.passphrase_fd is not None:
            with open(self.passphrase_fd, "rb") as stream:
                contents.append(stream.read())
        if not contents and ask and sys.stdin.isatty():
            contents.append(getpass.getpass("Passphrase: ").encode())
        return list(dict.fromkeys(one for content in contents for one in (content.removesuffix(b"\n"), content)))


@dataclass(frozen=True)
class AreaOptions(PassphraseOptions):
    """Position of the swap area with an image in its file."""

    offset: Annotated[int, offset_option()] = 0
    partition: Annotated[int | None, partition_option()] = None
    base: Annotated[int | None, base_option()] = None
    volume: Annotated[
        str | None,
        typer.Option(
            "--volume",
            metavar="SPEC",
            rich_help_panel=IMAGE_SECTION,
            help="Volume inside the disk, as `hibernaut find` prints it. Default: the disk itself.",
        ),
    ] = None

    def place(self, path: Path) -> tuple[Volume, int]:
        """Open the volume with the swap area, and return it with the block of the swap header.

        A virtual disk is opened without being asked. Raises FormatError, HibernautError, OSError.
        """
        if self.volume is not None and (self.partition is not None or self.base is not None):
            raise typer.BadParameter("--volume excludes --partition and --base: it names the volume")
        if self.volume is None:
            plain = open_plain(path)
            if container_of(plain) is None:
                return plain, self.offset
            plain.close()
        specification = self.volume or ""
        opened = open_volume(path, specification, self.read(ask="luks" in specification.split(",")))
        return opened, opened.block or self.offset

    def open_image(self, path: Path) -> Image:
        """Open a hibernation image there. Raises FormatError, OSError."""
        volume, offset = self.place(path)
        return open_image(volume, offset=offset, partition=self.partition, base=self.base)

    def open_given(self, stack: ExitStack, path: Path | None, advice: str) -> Image | None:
        """Open a hibernation image there, if one is given, for as long as the stack is. Raises FormatError, OSError.

        Args:
            stack: closes the image.
            path: the image; None for none.
            advice: what to do next if it is damaged or used up.
        """
        if path is None:
            return None
        try:
            return stack.enter_context(self.open_image(path))
        except FormatError as error:
            if isinstance(error, CorruptImage) or error.advice == SEE_CONSUMED:
                raise error.with_facts(advice=advice) from None
            raise


@dataclass(frozen=True)
class MemoryOptions(AreaOptions):
    """Position of a SOURCE, and of its page tables."""

    cr3: Annotated[
        int | None,
        typer.Option(
            "--cr3",
            parser=number,
            metavar="PADDR",
            rich_help_panel=SOURCE_SECTION,
            help="Physical address of the root of the page tables. Default: as SOURCE says, else searched.",
        ),
    ] = None
    levels: Annotated[
        int | None,
        typer.Option(
            "--levels",
            parser=_levels,
            metavar="4|5",
            rich_help_panel=SOURCE_SECTION,
            help="Levels of paging. Default: as SOURCE says, else detected.",
        ),
    ] = None
    gap: Annotated[list[str] | None, gap_option()] = None
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            metavar="FILE",
            rich_help_panel=IMAGE_SECTION,
            help="File that says where the units and frames of a large image are, so that it opens at once; made if it "
            "does not exist. Default: none.",
        ),
    ] = None

    def open_memory(self, path: Path, quiet: bool) -> Source:
        """Open memory, which an image there may hold, and print the remarks on it. Raises FormatError, OSError."""
        gaps = gaps_of(self.gap)
        volume, offset = self.place(path)
        source = open_memory(
            volume, offset=offset, partition=self.partition, base=self.base, gaps=gaps, index=self.index
        )
        for remark in source.remarks:
            say(f"{source.name}: {remark}", quiet)
        return source

    def find_paging(self, source: Source, quiet: bool, *, any_root: bool = False) -> Paging:
        """Return the page tables of a SOURCE, and print remarks on them.

        Raises:
            FormatError: see `source_tables.find_paging`.
        """
        found = find_paging(source, self.cr3, self.levels, any_root=any_root)
        for remark in found.remarks:
            say(remark, quiet)
        if source.is_live and found.direct_map is not None:
            say(racing_remark(source.memory, found.direct_map), quiet)
        return found

    def with_tables(self, source: Source, to: Collection[str], quiet: bool) -> tuple[Source, StatedTables | None]:
        """Return a source, raw memory with its gaps put back, and the page tables that files of memory state.

        Those of an image are its kernel's own, if its variables lead to its VMCOREINFO, which the source then has: few
        pages are read. All others are found as by `find_paging`.

        None, with a remark if a core lacks it then, if it cannot be found; None for a machine of another architecture,
        and if none of the formats states it.

        Args:
            source: the memory.
            to: formats of the files, see `core_file.CoreFormat`.
            quiet: print no remarks.

        Raises:
            ContradictoryMemory: see `find_paging`.
            FormatError: --cr3 is not that of page tables.
        """
        stated = not WITH_VMCOREINFO.isdisjoint(to)
        if source.foreign is not None or (not stated and source.undecided is None):
            return source, None
        pointed = None
        if stated and source.image is not None and self.cr3 is None:
            pointed = kernel_by_pointers(source, None if source.cr3 is None else (source.cr3, self.levels))
        if pointed is not None and pointed.direct_map_base is not None:
            tables = StatedTables(pointed.direct_map_base, pointed.cr3, pointed.levels)
            return dataclasses.replace(source, vmcoreinfo=pointed.text), tables
        try:
            paging = self.find_paging(source, quiet)
            found = paging.source or source
            if not stated:
                return found, None
            direct_map = direct_map_under(source, paging)
            return found, StatedTables(direct_map.base, direct_map.cr3, direct_map.levels)
        except FormatError as error:
            if isinstance(error, ContradictoryMemory) or self.cr3 is not None:
                raise
            if "elf" in to:
                say(f"virtual addresses are left out of the core: {error}", quiet)
            return source, None


@dataclass(frozen=True)
class StatedTables:
    """The page tables that a file of memory states.

    Attributes:
        base: address of page frame 0 in the direct map.
        cr3: root of the tables.
        levels: levels of the tables.
    """

    base: int
    cr3: int
    levels: int

    @property
    def root(self) -> tuple[int, int]:
        """Root and levels, as `core_file.convert` takes them."""
        return self.cr3, self.levels


@dataclass(frozen=True)
class MachineOptions(MemoryOptions):
    """Position of the machine in a SOURCE, and its pages to save."""

    pages_from: Annotated[
        Path | None,
        typer.Option(
            "--pages-from",
            metavar="IMAGE",
            rich_help_panel=PAGES_SECTION,
            help="Image of the same machine with the list of pages to save. Default: the list of SOURCE, if it is "
            "an image or a dump of a kernel stopped in swsusp_save; else all pages of the direct map.",
        ),
    ] = None
    pages_from_offset: Annotated[int, offset_option("pages-from-", PAGES_SECTION)] = 0
    pages_from_partition: Annotated[int | None, partition_option("pages-from-", PAGES_SECTION)] = None
    pages_from_base: Annotated[int | None, base_option("pages-from-", PAGES_SECTION)] = None

    def machine(
        self, stack: ExitStack, path: Path, rules: KernelRules | None, quiet: bool, opened: Source | None = None
    ) -> MachineInSource:
        """Open the machine in a SOURCE, for as long as the stack is, and print the remarks on it.

        Args:
            stack: closes the files.
            path: the SOURCE.
            rules: those of its kernel, if they are given.
            quiet: print no remarks.
            opened: the SOURCE, if it is open already; the caller closes it.

        Raises:
            FormatError, HibernautError: see `machine_in`.
            OSError: a file cannot be read.
        """
        from hibernaut.hibernation.machine_in_source import machine_in  # the model: most commands do without it

        source = opened or stack.enter_context(self.open_memory(path, quiet))
        area = AreaOptions(
            offset=self.pages_from_offset, partition=self.pages_from_partition, base=self.pages_from_base
        )
        pages_from = area.open_given(stack, self.pages_from, WHOLE_LIST)
        found = machine_in(source, pages_from=pages_from, cr3=self.cr3, levels=self.levels, rules=rules)
        for remark in found.remarks:
            say(remark, quiet)
        if source.is_live and found.machine.direct_map is not None:
            say(racing_remark(source.memory, found.machine.direct_map), quiet)
        return found


@dataclass(frozen=True)
class LikeOptions:
    """The image whose area and blocks a new one takes, and where it lies."""

    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="IMAGE",
            rich_help_panel=LIKE_SECTION,
            help="Image of the same machine: OUT is a copy of its file, with its list of pages, its info page and its "
            "blocks. Default: a new swap area.",
        ),
    ] = None
    like_offset: Annotated[int, offset_option("like-", LIKE_SECTION)] = 0
    like_partition: Annotated[int | None, partition_option("like-", LIKE_SECTION)] = None
    like_base: Annotated[int | None, base_option("like-", LIKE_SECTION)] = None

    def open_like(self, stack: ExitStack) -> Image | None:
        """Open the image of --like, if one is given, for as long as the stack is. Raises FormatError, OSError."""
        area = AreaOptions(offset=self.like_offset, partition=self.like_partition, base=self.like_base)
        return area.open_given(stack, self.like, WHOLE_LIKE)


class Compressor(StrEnum):
    """Compressors of images."""

    LZO = "lzo"
    LZ4 = "lz4"
    NONE = "none"


class YesNo(StrEnum):
    """A choice whose default is neither."""

    YES = "yes"
    NO = "no"


@dataclass(frozen=True)
class ContentOptions:
    """Form of the pages in an image that is written."""

    compressor: Annotated[
        Compressor | None,
        typer.Option("--compressor", help="Compressor of the image. Default: that of the existing image, else lzo."),
    ] = None
    zero_pages: Annotated[
        YesNo | None,
        typer.Option(
            "--zero-pages",
            help="Leave out zero pages, which Linux 6.6 and later read. Default: as in the existing image, else no.",
        ),
    ] = None

    def compressor_for(self, existing: Image | None) -> CompressorName:
        """Return the compressor: as given, as in the existing image, or lzo."""
        if self.compressor is not None:
            return self.compressor.value
        return existing.compressor if existing else "lzo"

    def zero_pages_for(self, existing: Image | None) -> bool:
        """Tell whether zero pages are left out: as given, as in the existing image, or not."""
        if self.zero_pages is not None:
            return self.zero_pages is YesNo.YES
        return bool(existing and existing.zero_frames.total_pages)


def report_option(what: str) -> Any:
    """Declare --report: a page for a browser, which has `what` besides scope and verdicts."""
    return typer.Option(
        "--report",
        metavar="FILE",
        help=f"Also write a page for any browser to this file: scope, verdicts, {what}. Default: none.",
    )


def refuse_same_file(out: Path, *sources: Path | None, option: str = "OUT") -> None:
    """Raise BadParameter if an output is one of its own sources, which writing it would destroy."""
    for source in sources:
        if source is not None and out.exists() and source.exists() and out.samefile(source):
            raise typer.BadParameter(f"{out} is the source itself; expected another file", param_hint=option)


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter whose type is a dataclass by options for its fields; the command gets the dataclass."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        fields = get_type_hints(kind, include_extras=True)
        groups[parameter.name] = (kind, [field.name for field in dataclasses.fields(kind)])  # type: ignore[assignment]
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=fields[field.name]
            )
            for field in dataclasses.fields(kind)
        ]

    def expanded(**given: Any) -> None:
        for name, (kind, fields) in groups.items():
            given[name] = kind(**{field: given.pop(field) for field in fields})
        command(**given)

    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
