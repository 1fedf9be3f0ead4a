# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands have: every command that needs them has all of them, with one meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from hibernaut.cli.options import (
    AreaOptions,
    ImageArgument,
    MemoryOptions,
    OutputOptions,
    SourceArgument,
    base_option,
    expand_options,
    offset_option,
)
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.cli.whole_images import WHOLE_ONLY
from hibernaut.hibernation import Fixmap, hibernate
from hibernaut.linux import build_machine
from hibernaut.studies.demo import demo_layout
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image
from tests.cli.declared import arguments_of, commands, options_of
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.damaged_images import Damage, damage

AREA = ("offset", "partition", "base")
PAGE_TABLES = ("cr3", "levels")
PLACES = {"IMAGE": AREA, "SOURCE": AREA + PAGE_TABLES, "MACHINE": AREA}
"""Options that locate a file, by the name that the help of a command gives the file."""
SALVAGE = ("--consumed", "--salvage", "--map-block")
IMAGES = ("SOURCE", "IMAGE", "MACHINE")
WHOLE_IMAGES = {
    **dict(WHOLE_ONLY),
    "save --like": "a kernel resumes from what is written into its blocks",
    "audit --pages-from": "a list that lacks pages would be taken for all of them",
    "explore --pages-from": "a list that lacks pages would be taken for all of them",
    "replay --pages-from": "a list that lacks pages would be taken for all of them",
    "inspect --on-machine": "its verdict needs facts that a damaged image may lack; a JSON file can state them",
}
"""Images that are read as a whole or not at all, by command and option, with the reason."""
GUESTS = ("lab", "takeover")
"""Commands whose --levels is about a guest, not about a source."""


def missing_places(found: Iterator[tuple[str, Any]]) -> list[str]:
    """Return the options that are missing for a file that a command reads."""
    missing = []
    for words, command in found:
        options = options_of(command)
        files = [("--", one.metavar) for one in arguments_of(command)]
        files += [
            ("--" if one.metavar == "SOURCE" else f"{name}-", one.metavar)
            for name, one in options.items()
            if name.startswith("--")
        ]
        missing += [
            f"{words}: {prefix}{place}"
            for prefix, metavar in files
            for place in PLACES.get((metavar or "").strip("[]{}"), ())
            if f"{prefix}{place}" not in options
        ]
    return missing


def read_whole(found: Iterator[tuple[str, Any]]) -> list[str]:
    """Return the images that commands do not read damaged or used up: the command, and the option that names it.

    --consumed, --salvage and --map-block are of the argument, and of an option whose value is a SOURCE.
    """
    whole = []
    for words, command in found:
        options = options_of(command)
        takes = all(name in options for name in SALVAGE)
        files = [(words, one.metavar) for one in arguments_of(command)]
        files += [(f"{words} {name}", one.metavar) for name, one in options.items() if name.startswith("--")]
        for name, metavar in files:
            kind = (metavar or "").strip("[]{}")
            own = name == words or kind == "SOURCE"
            if kind in IMAGES and not (takes and own):
                whole.append(name)
    return whole


def several_meanings(found: Iterator[tuple[str, Any]]) -> list[str]:
    """Return the names of places whose help or default differs between commands."""
    seen: dict[str, set[tuple[str, Any]]] = {}
    for words, command in found:
        shared = {f"--{place}" for place in (*AREA, *PAGE_TABLES, "json", "quiet")} | set(SALVAGE)
        if words.startswith(GUESTS):
            shared.remove("--levels")
        for name, option in options_of(command).items():
            if name in shared:
                seen.setdefault(name, set()).add((option.help, str(option.default)))
    return [name for name, meanings in seen.items() if len(meanings) > 1]


def without_answers(found: Iterator[tuple[str, Any]]) -> list[str]:
    """Return the commands that lack --json or --quiet."""
    return [words for words, command in found if not {"--json", "--quiet", "-q"} <= set(options_of(command))]


def test_every_command_that_reads_a_file_takes_the_position_of_the_image() -> None:
    """SOURCE and IMAGE, as an argument or an option, come with all options that say where in the file they lie."""
    assert missing_places(commands()) == []
    assert len(list(commands())) >= 23


def test_every_command_that_reads_an_image_reads_damaged_and_used_up_ones() -> None:
    """Or it is in the list of those that do not, with the reason; the list has no other."""
    assert sorted(read_whole(commands())) == sorted(WHOLE_IMAGES)
    assert set(WHOLE_ONLY) <= {words for words, _ in commands()}


def test_a_command_for_whole_images_says_what_to_do(tmp_path: Path) -> None:
    """It has none of the options: one line has the reason, and the command that takes out what is left."""
    for words in WHOLE_ONLY:
        for name in SALVAGE:
            value = ("1098",) if name == "--map-block" else ()
            line = refused(*words.split(), tmp_path / "image", tmp_path / "out", name, *value)
            assert f"`hibernaut {words}` takes whole images alone, and has no {name}: {WHOLE_ONLY[words]}" in line
            assert line.endswith(f"; take out what is left of one with `hibernaut convert {name}`")
    assert "no such option: --salvages" in refused("save", tmp_path / "image", tmp_path / "out", "--salvages")


def test_a_second_image_that_is_not_whole_is_refused(golden: Golden, golden_copy: Callable[[str], Path]) -> None:
    """Used up, or with a part of its list lost: as --pages-from and as --like, with what to do instead."""
    dump, name = golden("ram-6.1-lzo.elf"), "swap-6.1-lzo.img"
    kinds: list[tuple[Damage, int]] = [("used up", 2), ("list", 1)]
    for kind, status in kinds:
        path = damage(golden_copy(name), kind)
        line = refused("audit", dump, "--pages-from", path, status=status)
        assert "; give an image that is whole as --pages-from" in line
        out = path.with_name("out")
        line = refused("save", dump, out, "--via", "fixmap", "--like", path, status=status)
        assert line.endswith("; leave out --like for a new swap area, or give an image that is whole")
        assert not out.exists()


def test_a_name_has_one_meaning() -> None:
    """The options of places and answers have one help text and one default in all commands."""
    assert several_meanings(commands()) == []


def test_every_command_answers_in_json_and_quietly() -> None:
    """--json, --quiet and -q exist everywhere."""
    assert without_answers(commands()) == []


def read_nothing(source: SourceArgument, options: AreaOptions, output: OutputOptions) -> None:
    """A SOURCE without its page tables."""


def read_elsewhere(
    image: ImageArgument,
    offset: Annotated[int, typer.Option("--offset", help="Another meaning.")] = 0,
    partition: Annotated[int | None, typer.Option("--partition", help="Another meaning.")] = None,
    base: Annotated[int | None, base_option()] = None,
) -> None:
    """An IMAGE with options of its own, and no --json."""


def read_damaged(
    source: SourceArgument, options: MemoryOptions, salvage: SalvageOptions, output: OutputOptions
) -> None:
    """A SOURCE that may be damaged."""


def read_two(
    source: SourceArgument,
    options: MemoryOptions,
    output: OutputOptions,
    other: Annotated[Path | None, typer.Option("--other", metavar="IMAGE")] = None,
    other_offset: Annotated[int, offset_option("other-")] = 0,
) -> None:
    """A second image with only one of its options."""


@pytest.mark.parametrize(
    ("command", "missing", "meanings", "silent"),
    [
        (read_nothing, ["broken: --cr3", "broken: --levels"], [], []),
        (read_elsewhere, [], ["--offset", "--partition"], ["broken"]),
        (read_two, ["broken: --other-partition", "broken: --other-base"], [], []),
    ],
)
def test_a_broken_command_is_caught(
    command: Callable[..., None], missing: list[str], meanings: list[str], silent: list[str]
) -> None:
    """Each check finds the command that breaks its rule."""
    broken = typer.Typer()
    broken.command("broken")(expand_options(command))
    broken.command("other")(expand_options(read_nothing))
    assert [line for line in missing_places(commands(broken)) if line.startswith("broken")] == missing
    assert several_meanings(iter([*commands(), *commands(broken)])) == meanings
    assert without_answers(commands(broken)) == silent
    assert [line for line in read_whole(commands(broken)) if line.split()[0] == "broken"]
    broken.command("whole")(expand_options(read_damaged))
    assert "whole" not in read_whole(commands(broken))


def test_the_list_of_pages_is_found_inside_a_disk(golden: Golden, tmp_path: Path) -> None:
    """--pages-from-base and --like-base: the image lies 3 MiB and a bit into its file."""
    image, dump = golden("swap-6.1-lzo.img"), golden("ram-6.1-lzo.elf")
    inside, base = tmp_path / "disk", 3 * (1 << 20) + 1
    inside.write_bytes(bytes(base) + image.read_bytes())
    plain = hibernaut("audit", dump, "--pages-from", image, "--json")
    moved = hibernaut("audit", dump, "--pages-from", inside, "--pages-from-base", base, "--json")
    assert moved.document == plain.document
    assert "no swap area" in refused("audit", dump, "--pages-from", inside)
    out = tmp_path / "out"
    assert hibernaut("save", dump, out, "--via", "fixmap", "--like", inside, "--like-base", base).status == 0
    assert out.read_bytes()[:base] == bytes(base)
    assert hibernaut("inspect", out, "--base", base, "-q").status == 0


def test_the_machine_of_a_verdict_is_found_inside_a_disk(golden: Golden, tmp_path: Path) -> None:
    """--on-machine-base: the other image of the machine lies inside a disk."""
    image = golden("swap-6.1-lzo.img")
    inside = tmp_path / "disk"
    inside.write_bytes(bytes(4096) + image.read_bytes())
    asked = ("inspect", image, "--for-kernel", "6.1", "--json", "--on-machine")
    plain, moved = hibernaut(*asked, image), hibernaut(*asked, inside, "--on-machine-base", 4096)
    assert moved.document["verdict"]["checks"] == plain.document["verdict"]["checks"]
    assert moved.document["verdict"]["resumes"] is True


def test_the_list_of_pages_of_another_machine_is_refused(golden: Golden, tmp_path: Path) -> None:
    """The image of a machine with other kernel code in the frame of the restore entry: status 2, by every command."""
    machine = build_machine(demo_layout())
    snapshot = hibernate(machine, Fixmap())
    other = tmp_path / "other.img"
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=16000)
    write_image(other, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    for words in (("audit",), ("explore", "--via", "fixmap")):
        line = refused(*words, golden("ram-6.1-lzo.elf"), "--pages-from", other)
        assert "not an image of the machine in" in line
