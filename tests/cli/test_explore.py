# SPDX-License-Identifier: GPL-2.0-or-later
"""explore, replay, answers, lab confirm: their options, output and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.run import hibernaut
from tests.conftest import Golden

SMALL = ("--layout", "kinds=2m", "--layout", "tables=above")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest bad runs of Remap with one block whose table lies above."""
    folder = tmp_path_factory.mktemp("runs")
    assert hibernaut("explore", *SMALL, "--via", "remap", "--save", folder, "--quiet").status == 1
    return folder


def test_remap_is_not_safe_and_fixmap_is() -> None:
    """Status 1 if any way loses something, 0 if none; the document says which and how often."""
    result = hibernaut("explore", *SMALL, "--via", "remap,fixmap", "--json")
    assert result.status == 1
    remap, fixmap = result.document["ways"]
    assert (remap["way"], remap["safe"], fixmap["way"], fixmap["safe"]) == ("remap", False, "fixmap", True)
    assert result.document["covered"]
    assert [one["outcome"] for one in remap["endings"]] == ["saved", "saved", "died"]
    assert remap["endings"][2]["injected"] == ["allocation 1 fails: injected"]
    assert hibernaut("explore", *SMALL, "--via", "fixmap", "--quiet").status == 0


def test_traces_alone_are_not_a_loss() -> None:
    """Reserved leaves a block split: it is reported, and the status is 0."""
    result = hibernaut("explore", *SMALL, "--via", "reserved:1")
    assert result.status == 0
    assert "loses nothing in any run, but leaves traces" in result.out


def test_a_search_that_is_cut_says_where() -> None:
    """With a bound on states the report does not claim to have covered everything."""
    result = hibernaut("explore", *SMALL, "--via", "remap", "--bound", "states=2")
    assert "CUT: not every run" in result.out
    assert "after 2 states" in result.out


def test_saved_runs_replay(saved: Path) -> None:
    """Each file replays byte for byte; one that was changed does not, and the status is 1."""
    files = sorted(path.name for path in saved.iterdir())
    assert files == ["remap-died-after-a-warning-no-fault.json", "remap-saved-tables-closed.json"]
    for name in files:
        result = hibernaut("replay", saved / name)
        assert result.status == 0
        assert "identical to the saved run, byte for byte" in result.out
    changed = saved.parent / "changed.json"
    changed.write_text((saved / files[0]).read_text().replace('"warned": true', '"warned": false'))
    result = hibernaut("replay", changed)
    assert result.status == 1
    assert "differs from the saved run: line" in result.out


def test_results_are_kept_and_resumed(tmp_path: Path) -> None:
    """A second sweep resumes the first one; another sweep's file is refused and left alone."""
    path = tmp_path / "out.jsonl"
    first = hibernaut("explore", *SMALL, "--via", "remap", "--results", path, "--json")
    content = path.read_bytes()
    again = hibernaut("explore", *SMALL, "--via", "remap", "--results", path, "--json")
    assert again.document == first.document
    other = hibernaut("explore", *SMALL, "--via", "fixmap", "--results", path)
    assert other.status == 2
    assert "results of another sweep" in other.err
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--layout", "kinds=3m"), "no region '3m'"),
        (("--layout", "regions=5"), "no machine has 5 regions; expected 0-4"),
        (("--layout", "colour=red"), "is not a key with values; expected"),
        (("--layout", "regions"), "is not a key with values; expected"),
        (("--layout", "regions=1", "--layout", "regions=2"), "given twice"),
        (("--layout", "tables=beside"), "tables: 'beside' is not known; expected above, below"),
        (("--layout", "cpus=9"), "no machine has 9 CPUs; expected 1-4"),
        (("--layout", "free-pages=0"), "no machine has 0 free pages; expected 1-4096"),
        (("--layout", "min-mark=5000"), "min-mark: 5000; expected 0-4096, each once"),
        (("--layout", "batch=0"), "batch: 0; expected 1-2048, each once"),
        (("--layout", "min-mark=x"), "min-mark: 'x' is not a number; expected decimal digits"),
        (("--bound", "states=x"), "'x' is not a number"),
        (("--bound", "luck=1"), "is not a key with values; expected"),
        (("--via", "fly"), "no way 'fly'"),
        (("--via", "remap,remap"), "each once"),
        (("--rules", "new"), "no rules for kernel 'new'; expected 6.1"),
        (("--scheduler", "tcp://127.0.0.1:1", "nofile"), "for simulated machines"),
        (("nofile",), "No such file"),
        (("--save", __file__), "File exists"),
    ],
)
def test_words_that_cannot_be_explored(words: tuple[str, ...], what: str) -> None:
    """Wrong words: status 2, one line that says what is wrong, or typer's usage."""
    result = hibernaut("explore", *words)
    assert result.status == 2
    assert what in " ".join(result.err.replace("│", " ").split())


def test_a_file_that_is_not_a_run(tmp_path: Path) -> None:
    """Anything else: status 2 and one line."""
    path = tmp_path / "other"
    for content in (b"", b"{}", b"\0" * 100, b'{"format": "hibernaut run", "version": 1}'):
        path.write_bytes(content)
        for command in (("replay",), ("lab", "confirm")):
            result = hibernaut(*command, path)
            assert (result.status, len(result.err.splitlines())) == (2, 1)


def test_a_real_machine_explored_and_replayed(golden: Golden, tmp_path: Path) -> None:
    """6.1 with a block out: Remap crashes or tears like the kernel, Fixmap is safe, the runs replay on the dump."""
    dump, image = golden("ram-6.1-low2m.elf"), golden("swap-6.1-low2m.img")
    result = hibernaut(
        "explore", dump, "--pages-from", image, "--via", "remap,fixmap", "--save", tmp_path / "runs", "--json"
    )
    assert result.status == 1
    remap, fixmap = result.document["ways"]
    assert [(one["outcome"], one["violated"][:1]) for one in remap["endings"]] == [
        ("saved", ["tables-closed"]),
        ("died", ["no-fault"]),
    ]
    assert (fixmap["safe"], fixmap["runs"]) == (True, 1)
    for one in remap["endings"]:
        assert hibernaut("replay", one["file"], "--source", dump, "--pages-from", image).status == 0
        assert hibernaut("replay", one["file"]).status == 2
        assert hibernaut("replay", one["file"], "--source", golden("swap-6.1-lzo.img")).status == 2


def test_confirm_says_what_it_would_arrange(saved: Path) -> None:
    """--dry-run prints QEMU's line; a run that cannot be arranged is refused with the reason, status 2."""
    result = hibernaut("lab", "confirm", saved / "remap-saved-tables-closed.json", "--dry-run")
    assert result.status == 0
    assert "qemu-system-x86_64" in result.out
    for words, why in (
        (("kinds=1g", "remap"), "1g"),
        (("kinds=no-table", "remap"), "no-table"),
        (("kinds=2m", "reserved:0"), "a stock kernel copies by remap"),
    ):
        folder = saved.parent / words[0]
        hibernaut("explore", "--layout", words[0], "--layout", "tables=below", "--via", words[1], "--save", folder)
        refused = hibernaut("lab", "confirm", sorted(folder.iterdir())[-1], "--dry-run")
        assert (refused.status, len(refused.err.splitlines())) == (2, 1)
        assert why in refused.err


def test_confirm_knows_what_a_guest_cannot_be() -> None:
    """The runs of the page of answers: five can be arranged, the others are refused, each in one line."""
    folder = Path(__file__).resolve().parents[2] / "docs" / "answers"
    arranged = set()
    for path in folder.iterdir():
        result = hibernaut("lab", "confirm", path, "--dry-run")
        if result.status == 0:
            arranged.add(path.stem)
        else:
            assert (result.status, len(result.err.splitlines())) == (2, 1)
    assert arranged == {
        "remap-crashes-after-a-warning",
        "remap-crashes-without-a-warning",
        "remap-tears-the-image",
        "rewritten-entries-lose-nothing",
        "torn-lists-without-a-lost-table",
    }
    nodes = hibernaut("lab", "confirm", folder / "torn-lists-without-a-lost-table.json", "--dry-run")
    assert "-numa node,nodeid=1,memdev=node1 -numa cpu,node-id=1" in nodes.out


def test_answers_of_one_study() -> None:
    """A study alone: its claims that need no other, all of which hold."""
    result = hibernaut("answers", "--study", "line 7.3", "--json")
    assert result.status == 0
    assert [one["name"] for one in result.document["studies"]] == ["line 7.3"]
    assert hibernaut("answers", "--study", "weather").status == 2
    assert hibernaut("answers", "--write", f"{__file__}/page.md").status == 2
    assert json.dumps(result.document)
