# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share: options, numbers, output, progress."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hibernaut.cli.terminal import print_json, print_text, progress_bar, say
from hibernaut.errors import FormatError, HibernautError
from hibernaut.hibernation.real_kernel import rules_of_source
from hibernaut.kernel_line import Probed
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.roots import find_root
from hibernaut.linux.rules import LINES, RULE_NAMES, KernelRules, rules_for_release, rules_named
from hibernaut.sources import Source

__all__ = [
    "BaseOption",
    "Cr3Option",
    "JsonOption",
    "LevelsOption",
    "OffsetOption",
    "PartitionOption",
    "QuietOption",
    "RulesOption",
    "SourceArgument",
    "console",
    "direct_map_of",
    "expand_options",
    "number",
    "paging_of",
    "print_json",
    "progress_bar",
    "refuse_same_file",
    "rules_of",
    "say",
]


def number(text: str) -> int:
    """A number as people write it: decimal, or hexadecimal with 0x."""
    try:
        value = int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number (decimal, or hexadecimal with 0x)") from None
    if not 0 <= value < 1 << 64:
        raise typer.BadParameter(f"{text} does not fit in 64 bits")
    return value


SourceArgument = Annotated[
    Path, typer.Argument(help="A hibernation image or a RAM dump (ELF core, LiME, kdump, raw), compressed or not.")
]
Cr3Option = Annotated[
    int | None,
    typer.Option("--cr3", parser=number, metavar="PADDR", help="Root of the page tables, if not to be found."),
]
LevelsOption = Annotated[
    int | None, typer.Option("--levels", min=4, max=5, help="Levels of paging, if not to be found.")
]
OffsetOption = Annotated[
    int, typer.Option("--offset", min=0, metavar="PAGES", help="Swap file: block of its header (resume_offset).")
]
PartitionOption = Annotated[
    int | None, typer.Option("--partition", min=1, metavar="N", help="Whole disk: the partition (MBR or GPT) to read.")
]
BaseOption = Annotated[
    int | None, typer.Option("--base", parser=number, metavar="BYTES", help="Whole disk: where the device begins.")
]


def _rules(text: str) -> KernelRules:
    try:
        return rules_named(text)
    except HibernautError:
        try:
            return rules_for_release(text)
        except HibernautError:
            names = ", ".join(one.line for one in LINES)
            raise typer.BadParameter(f"no rules for a kernel {text!r} ({names}, or a release)") from None


RulesOption = Annotated[
    KernelRules | None,
    typer.Option(
        "--rules", parser=_rules, metavar="KERNEL", help="Whose rules hold: 6.1, 6.6, 6.12, 6.13-rc, 6.15, 7.3."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, nothing but the answer's exit status.")]


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make options that several commands share of dataclasses: each of its fields, annotated as an option, is one.

    A parameter of the command whose type is a dataclass is replaced by options for that class's fields; the command
    gets the object made of them.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        fields = get_type_hints(kind, include_extras=True)
        groups[parameter.name] = (kind, list(fields))  # type: ignore[assignment]
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


class _Plain:
    print = staticmethod(print_text)


def console() -> type[_Plain]:
    """Return the writer of answers to standard output."""
    return _Plain


def refuse_same_file(out: Path, *sources: Path | None) -> None:
    """An output that is one of its own sources would destroy it: a usage error."""
    for source in sources:
        if source is not None and out.exists() and source.exists() and out.samefile(source):
            raise typer.BadParameter(f"{out} is the source itself", param_hint="OUT")


def rules_of(given: KernelRules | None, source: Source, quiet: bool, told: str | None = None) -> Probed[KernelRules]:
    """Return the rules that were asked for; else those of the kernel in the source.

    A kernel that cannot be asked is remarked on, unless the reason was `told` of something else already.
    """
    if given is not None:
        return Probed(given, (), RULE_NAMES)
    found = rules_of_source(source)
    if found.reason not in (None, told):
        say(f"the rules are those of the line {found.rules.line}: {found.reason}", quiet)
    return found


def paging_of(source: Source, cr3: int | None, levels: int | None) -> tuple[int, int | None]:
    """CR3 and, if known, the number of levels: as told, as the source says, or found in its memory.

    Raises:
        FormatError: the source does not say and no root, or more than one, was found.
    """
    if cr3 is not None:
        return cr3, levels if levels is not None else source.levels
    if source.cr3 is not None:
        return source.cr3, levels if levels is not None else source.levels
    try:
        root = find_root(source.memory)
    except FormatError as error:
        raise FormatError(f"{source.name} does not say where its page tables are, and {error}; give --cr3") from error
    return root.cr3, root.levels


def direct_map_of(source: Source, cr3: int | None, levels: int | None) -> DirectMap:
    """The direct map of a source, see `paging_of`. Raises FormatError if there is none."""
    root, known_levels = paging_of(source, cr3, levels)
    try:
        return DirectMap.find(source.memory, root, known_levels)
    except FormatError as error:
        if error.source is not None:
            raise
        raise error.with_facts(source=source.name) from error
