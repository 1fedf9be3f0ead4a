# SPDX-License-Identifier: GPL-2.0-or-later
"""Cures: edits at anchors of a small source of our own, which has the names of the kernel's and none of its lines."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.lab.cure.cures import STOCK, Cure, cure_named, cures
from hibernaut.lab.cure.edits import Edit, apply_edits
from tests.conftest import REPOSITORY

SOURCE = {
    "arch/x86/include/asm/fixmap.h": "enum fixed_addresses {\n\tFIRST,\n\n\t__end_of_permanent_fixed_addresses,\n};\n",
    "arch/x86/mm/pat/set_memory.c": (
        "static int split_large_page(struct cpa_data *cpa,\n\t\t\tint a)\n{\n\tstruct page *base;\n\n"
        "\tbase = alloc_pages(a);\n\treturn !base;\n}\n\n"
        "bool kernel_page_present(struct page *page)\n{\n\tpte_t *pte = find(page);\n\n\treturn pte_val(*pte) & 1;\n}\n"
    ),
    "kernel/power/snapshot.c": (
        "int declared_and_called(int a)\n{\n\treturn hibernate_map_page(0);\n}\n\n"
        "/* on the next one */\nstatic void hibernate_map_page(struct page *page)\n{\n\tif (page) {\n\t\tremap(page);\n"
        "\t}\n}\n\nstatic void hibernate_unmap_page(struct page *page)\n{\n\tunmap(page);\n}\n\n"
        "static void safe_copy_page(void *to, struct page *page)\n{\n\tif (kernel_page_present(page)) {\n"
        "\t\tcopy(to, page_address(page));\n\t} else {\n\t\thibernate_map_page(page);\n"
        "\t\tcopy(to, page_address(page));\n\t\thibernate_unmap_page(page);\n\t}\n}\n\n"
        "int swsusp_save(void)\n{\n\tdrain_local_pages(0);\n\tnr_pages = count_data_pages();\n"
        "\tdrain_local_pages(0);\n}\n"
    ),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source folder with the files that the cures change."""
    for name, text in SOURCE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


CHANGES = [cure for cure in cures().values() if cure.edits]


@pytest.mark.parametrize("cure", CHANGES, ids=lambda cure: cure.name)
def test_every_cure_fits(source: Path, cure: Cure) -> None:
    """Each edit changes something; the source itself is not written to; patch(1) makes the same change."""
    changed = cure.changes(source)
    assert set(changed) == cure.files
    assert all(before == SOURCE[name] == (source / name).read_text() for name, (before, _) in changed.items())
    assert all(before != after for before, after in changed.values())
    if shutil.which("patch") is None:
        pytest.skip("no patch(1)")
    patch = cure.patch(source)
    assert re.match(r"Subject: \[PATCH\] \S.*\n\n(.*\n)+---\n\n--- a/", patch)
    subprocess.run(["patch", "-s", "-p1", "-d", source], input=patch, text=True, check=True)
    assert all((source / name).read_text() == after for name, (_, after) in changed.items())


def test_the_places_of_the_cure(source: Path) -> None:
    """Before a comment, after a brace, before a line, in a function and nowhere else."""
    changed = {name: after for name, (_, after) in cure_named("fixmap").changes(source).items()}
    header = changed["arch/x86/include/asm/fixmap.h"]
    assert "FIRST,\n\n#if defined" in header
    assert "#endif\n\n\t__end_of_permanent_fixed_addresses,\n};" in header
    assert "\treturn pte && pte_val(*pte) & 1;" in changed["arch/x86/mm/pat/set_memory.c"]
    snapshot = changed["kernel/power/snapshot.c"]
    assert "}\n\n#ifdef CONFIG_X86_64\n" in snapshot
    assert "#else /* !CONFIG_X86_64 */\n\n/* on the next one */\nstatic void *hibernate_map_page(" in snapshot
    assert "\n\t}\n\n\treturn page_address(page);\n}\n" in snapshot
    assert "\tunmap(page);\n}\n#endif /* CONFIG_X86_64 */\n" in snapshot
    assert "\t\tcopy(to, page_address(page));\n\t} else {\n\t\tvoid *src = hibernate_map_page(page);\n\n" in snapshot
    assert "\t\tcopy(to, src);\n\t\thibernate_unmap_page(page);" in snapshot
    assert "\treturn hibernate_map_page(0);" in snapshot


def test_wrong_cures_differ_from_the_cure_and_from_each_other(source: Path) -> None:
    """One mistake each, and the effect by which it is noticed."""
    patches = {cure.name: cure.changes(source) for cure in CHANGES}
    assert len({str(changed) for changed in patches.values()}) == len(patches)
    wrong = [cure for cure in cures().values() if cure.kind == "wrong"]
    assert {"no-flush", "no-null-check", "copy-skipped", "slot-never-cleared"} <= {cure.name for cure in wrong}
    assert len(wrong) >= 6
    assert all(cure.noticed for cure in wrong)
    assert [cure.name for cure in cures().values() if cure.kind == "stock"] == [STOCK]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("kernel/power/snapshot.c", "safe_copy_page", "other_copy", "1 definition of safe_copy_page(); found 0"),
        ("kernel/power/snapshot.c", SOURCE["kernel/power/snapshot.c"], SOURCE["kernel/power/snapshot.c"] * 2,
         "1 definition of hibernate_map_page(); found 2"),
        ("arch/x86/mm/pat/set_memory.c", "return pte_val(*pte)", "return pte && pte_val(*pte)",
         "in kernel_page_present(); found 0"),
        ("arch/x86/include/asm/fixmap.h", "FIRST,", "__end_of_permanent_fixed_addresses,", "found 2"),
    ],
)  # fmt: skip
def test_an_anchor_that_does_not_fit(source: Path, file: str, old: str, new: str, said: str) -> None:
    """One line: the edit, the file, what was expected and how many there are; nothing is changed."""
    (source / file).write_text(SOURCE[file].replace(old, new))
    with pytest.raises(FormatError) as caught:
        cure_named("fixmap").changes(source)
    line = str(caught.value)
    assert line.startswith("anchor of the edit ")
    assert f"{source / file}; expected 1 " in line
    assert said in line
    assert "\n" not in line


def test_a_source_without_the_file(tmp_path: Path) -> None:
    """A folder that is not a kernel's source."""
    with pytest.raises(FormatError, match=r"the edit 'slot' has no file: .*fixmap\.h; expected a source tree"):
        cure_named("fixmap").changes(tmp_path)


def test_a_definition_is_not_a_call_or_a_declaration(tmp_path: Path) -> None:
    """Declarations, calls and names that only end alike are not anchors; a definition may span lines."""
    text = (
        "int f(int a);\nint xf(int a)\n{\n\treturn f(a);\n}\n\n"
        "static int\nf(int a,\n  int b)\n{\n\treturn a;\n}\nint z;\n"
    )
    (tmp_path / "x.c").write_text(text)
    changed = apply_edits(tmp_path, [Edit("e", "x.c", "after-definition", "/* here */\n", function="f")])
    assert changed["x.c"][1] == text.replace("}\nint z;", "}\n/* here */\nint z;")


def test_edits_that_cannot_be(tmp_path: Path) -> None:
    """A place that is unknown, or lacks its function or pattern."""
    for place, said in (("elsewhere", "unknown place"), ("replace", "needs a pattern"), ("at-end", "needs a function")):
        with pytest.raises(ValueError, match=said):
            Edit("e", "x.c", place, "")  # type: ignore[arg-type]
    with pytest.raises(LabUnavailable, match=r"no cure 'x'; expected stock, fixmap.*; give one of these as --cure"):
        cure_named("x")
    assert tmp_path.exists()


def test_alternatives_of_an_edit(source: Path) -> None:
    """7.3 allocates a pte_t * where 6.1 allocates a struct page: one edit of the two fits; both or none is an error."""
    name, cure = "arch/x86/mm/pat/set_memory.c", cure_named("reserved-tables")
    assert "\tbase = table ? virt_to_page(table) : alloc_pages(a);" in cure.changes(source)[name][1]
    newer = SOURCE[name].replace("base = alloc_pages(", "pte = pte_alloc_one_kernel(")
    (source / name).write_text(newer)
    assert "\tpte = table ? table : pte_alloc_one_kernel(a);" in cure.changes(source)[name][1]
    (source / name).write_text(SOURCE[name].replace("\treturn !base;", "\tpte = pte_alloc_one_kernel();"))
    with pytest.raises(
        FormatError, match=r"several alternatives of the edit 'take' fit: .*; expected 1; found 2; give"
    ):
        cure.changes(source)
    (source / name).write_text(SOURCE[name].replace("base = alloc_pages(a)", "base = 0"))
    with pytest.raises(FormatError, match=r"anchor of the edit 'take' does not fit.*found 0"):
        cure.changes(source)


def test_the_commit_message_cites_runs_that_exist() -> None:
    """Every replay file in it lies in docs/answers; its lines are as long as those of a commit."""
    message = cure_named("fixmap").message
    cited = re.findall(r"[\w-]+\.json", message)
    assert len(cited) >= 6
    assert [name for name in cited if not (REPOSITORY / "docs/answers" / name).is_file()] == []
    assert max(map(len, message.splitlines())) <= 75
