# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands put together. A command's module, which may load much, is imported with that command only."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.main import get_command

from hibernaut.cli.help import ExampleCommand, WholeHelpGroup, add_commands
from hibernaut.cli.terminal import print_text, print_version

__all__ = ["app_with", "overview", "run"]


def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop. Default: no.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            help="With --version: also print the libraries that compress and decompress images. Default: no.",
        ),
    ] = False,
) -> None:
    """Linux x86-64 hibernation: page tables, the copy loop and the image, on simulated and real machines."""
    if version:
        print_version(verbose=verbose)
        raise typer.Exit
    if verbose:
        raise typer.BadParameter("--verbose goes with --version")
    if context.invoked_subcommand is None:
        print_text(context.get_help())
        raise typer.Exit(2)


FIRST_STEPS = """\
hibernaut: what Linux hibernation saves, what it loses, what an image holds.

A hibernated disk:    hibernaut find DISK            the images in it
                      hibernaut inspect SOURCE       whole? resumable? whose?
                      hibernaut mount SOURCE FOLDER  memory, processes, files
It does not resume:   hibernaut doctor               the reason, check by check
A kernel is changed:  hibernaut lab judge --tree FOLDER
                      hibernaut audit SOURCE         pages lost by today's code
The question:         hibernaut explain; hibernaut demo
All commands: hibernaut --help. One of them: hibernaut COMMAND --help."""
"""The program in ten lines, for each kind of user."""


class CommandEntry(NamedTuple):
    """A command.

    Attributes:
        name: its name.
        function: name of its function, in the module of the command.
        example: command line; its files are those that the tests provide.
        summary: first paragraph of its help, for the overview.
    """

    name: str
    function: str
    example: str
    summary: str


COMMANDS: tuple[CommandEntry, ...] = (
    CommandEntry(
        "demo",
        "demo",
        "hibernaut demo",
        "Hibernate and resume simulated machines in every situation by every way, and check each resumed one.",
    ),
    CommandEntry(
        "find",
        "find",
        "hibernaut find swap.img",
        "List the swap areas inside disks, their state, and the options that open them.",
    ),
    CommandEntry(
        "inspect",
        "inspect",
        "hibernaut inspect swap.img --digests",
        "Show the contents of a hibernation image and whether it is intact.",
    ),
    CommandEntry(
        "doctor",
        "doctor",
        "hibernaut doctor --image swap.img",
        "Tell whether a machine will hibernate, whether it will come back, and why not.",
    ),
    CommandEntry(
        "ps",
        "ps",
        "hibernaut ps swap.img",
        "List the processes of a machine: start, user, pages in memory and in swap, arguments.",
    ),
    CommandEntry(
        "dmesg",
        "dmesg",
        "hibernaut dmesg ram.elf",
        "Print the kernel's log, with the time stamps that dmesg prints.",
    ),
    CommandEntry(
        "map",
        "map_",
        "hibernaut map ram.elf",
        "Show the direct map of a dump or an image: its base, the memory present by each size of entry, every hole.",
    ),
    CommandEntry(
        "report",
        "report",
        "hibernaut report swap.img -o page.html",
        "Write a page on the machine in a dump or an image: verdict, map of its memory, page tables, compression.",
    ),
    CommandEntry(
        "walk",
        "walk",
        "hibernaut walk ram.elf 0xffffffff81000000",
        "Show every table entry that the CPU reads on the way to an address.",
    ),
    CommandEntry(
        "convert",
        "convert_",
        "hibernaut convert swap.img memory.elf --to elf",
        "Convert a dump or an image: all its page frames, each at its place in the machine's memory.",
    ),
    CommandEntry(
        "mount",
        "mount",
        "hibernaut mount swap.img memory",
        "Mount a dump or an image: its memory as files that are read on demand, each the one that convert writes.",
    ),
    CommandEntry(
        "process",
        "process",
        "hibernaut process swap.img 1",
        "Show the address space of a process, its swapped-out pages included.",
    ),
    CommandEntry(
        "files",
        "files",
        "hibernaut files swap.img",
        "List the files in the page cache and in tmpfs, or put one together, its swapped-out pages included.",
    ),
    CommandEntry(
        "drgn",
        "drgn",
        "hibernaut drgn swap.img tasks.py",
        "Open a dump or an image in drgn: all symbols and types of its kernel and modules, without debug packages.",
    ),
    CommandEntry(
        "isf",
        "isf",
        "hibernaut isf swap.img",
        "Write Volatility 3's symbol file (ISF) of the kernel in a dump or an image, without debug packages.",
    ),
    CommandEntry(
        "volatility-plugins",
        "volatility_plugins",
        "hibernaut volatility-plugins",
        "Print the folder of the plug-in by which Volatility 3 reads hibernation images in place.",
    ),
    CommandEntry(
        "save",
        "save",
        "hibernaut save ram.elf new.img --via fixmap",
        "Hibernate a dump (or an image) into an image, as the kernel does it or as the fixmap patch would.",
    ),
    CommandEntry(
        "rewrite",
        "rewrite",
        "hibernaut rewrite swap.img new.img --zero-pages yes",
        "Write an image again into its own blocks, with another compressor or other bytes in memory.",
    ),
    CommandEntry(
        "seal",
        "seal",
        "hibernaut seal swap.img --key key.pem --manifest swap.seal",
        "Seal an image: digest every block that a resuming kernel reads, in its order, and sign the list.",
    ),
    CommandEntry(
        "verify",
        "verify",
        "hibernaut verify swap.img --key key.pem.pub --manifest swap.seal",
        "Tell whether a resuming kernel will read of an image what was sealed: one line, and the exit status.",
    ),
    CommandEntry(
        "seal-key",
        "seal_key",
        "hibernaut seal-key new.pem",
        "Make a pair of Ed25519 keys: FILE to seal with, readable by its owner alone, and FILE.pub to verify with.",
    ),
    CommandEntry(
        "audit",
        "audit_",
        "hibernaut audit swap.img",
        "Tell whether hibernation would save every page of a machine, without copying anything.",
    ),
    CommandEntry(
        "explain",
        "explain_",
        "hibernaut explain --rules 6.12",
        "Answer the mailing list's question about saving an unmapped page: every branch, in words and by a run.",
    ),
    CommandEntry(
        "explore",
        "explore_",
        "hibernaut explore --layout regions=1 --via fixmap",
        "Run every possible run: every failing allocation, every stale translation, every layout of a family.",
    ),
    CommandEntry(
        "replay",
        "replay_",
        "hibernaut replay run.json",
        "Play a saved run again, print its log, and tell whether it ends as it was saved, byte for byte.",
    ),
    CommandEntry(
        "answers",
        "answers_",
        'hibernaut answers --study "line 7.3" --write page.md',
        "Run all studies and judge every claim about the ways of saving a page: the page docs/answers.md.",
    ),
    CommandEntry(
        "takeover",
        "takeover",
        "hibernaut takeover --keep disks",
        "Stop a real kernel before it copies anything, save it through the fixmap, and resume a stock kernel from "
        "that.",
    ),
    CommandEntry(
        "schema",
        "schema",
        "hibernaut schema lab prove",
        "Print the JSON Schema of the document that a command prints with --json.",
    ),
    CommandEntry(
        "completion",
        "completion",
        "hibernaut completion bash",
        "Print a script by which a shell completes commands, options, their values and file names.",
    ),
)
LAB = "lab"
LAB_SUMMARY = "Real kernels under QEMU: boot, hibernate, dump, resume, and prove hibernaut's claims."


def app_with(wanted: str | None = None) -> typer.Typer:
    """Return the program with one command, or with all.

    Args:
        wanted: name of the command; None for all.
    """
    made = _program()
    chosen = [command for command in COMMANDS if wanted in (None, command.name)]
    add_commands(made, ((one.name, _function(one), one.example) for one in chosen))
    if wanted in (None, LAB):
        made.add_typer(import_module("hibernaut.cli.lab.app").lab, name=LAB)
    return made


def overview() -> typer.Typer:
    """Return the program with the names and summaries of all commands, none of which it can run."""
    made = _program()
    for name, summary in (*((one.name, one.summary) for one in COMMANDS), (LAB, LAB_SUMMARY)):
        made.command(name, cls=ExampleCommand, help=summary)(_misplaced)
    return made


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status. Every failure is raised as an exception."""
    if not arguments:
        print_text(FIRST_STEPS)
        return 2
    is_known = arguments[0] in {LAB, *(one.name for one in COMMANDS)}
    program = app_with(arguments[0]) if is_known else overview()
    try:
        with get_command(program).make_context("hibernaut", arguments) as context:
            context.command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _program() -> typer.Typer:
    """Return the program without a command."""
    made = typer.Typer(
        name="hibernaut",
        cls=WholeHelpGroup,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_options)
    return made


def _function(command: CommandEntry) -> Callable[..., Any]:
    """Return the function of a command, which its module has."""
    module = import_module(f"hibernaut.cli.{command.name.replace('-', '_')}")
    found: Callable[..., Any] = getattr(module, command.function)
    return found


def _misplaced() -> None:
    raise typer.BadParameter("a command is the first word: hibernaut COMMAND [OPTIONS]")
