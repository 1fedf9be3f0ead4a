# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels built from source: views, results and plans, with a `make` that only pretends; whole builds if wanted."""

from __future__ import annotations

import filecmp
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.lab.cure.cures import cure_named
from hibernaut.lab.host import build
from hibernaut.lab.host.build import Built, build_kernel, make_view, plan_build, unset_in
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.kernels import KERNEL_LINES
from hibernaut.lab.host.trees import BZIMAGE, RELEASE, kbuild_folder, kernel_of_tree
from tests.cli.run import hibernaut, refused
from tests.conftest import KERNEL_BUILD_SWITCH
from tests.lab.test_cure import SOURCE
from tests.lab.test_kernels import bzimage

MAKE = """#!/bin/sh
echo "$@" >>"{folder}/told"
for word; do case "$word" in O=*) out="${{word#O=}}" ;; allnoconfig) configure=1 ;; esac; done
if [ "$configure" ]; then
    grep -v KFENCE "$KCONFIG_ALLCONFIG" >"$out/.config"
    echo CONFIG_X86_64=y >>"$out/.config"
    exit
fi
echo "  CC      x.o"
[ ! -e "{folder}/fail" ] || {{ cat "{folder}/fail" >&2; exit 2; }}
mkdir -p "$out/arch/x86/boot" "$out/include/config" "$out/drivers"
cp "{folder}/bzImage" "$out/arch/x86/boot/"
cat "$2/kernel/power/snapshot.c" >>"$out/arch/x86/boot/bzImage"
echo 6.7.8-mine >"$out/include/config/kernel.release"
touch "$out/Makefile" "$out/Module.symvers" "$out/drivers/mine.ko"
echo drivers/mine.o >"$out/modules.order"
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source folder that looks like a kernel's."""
    made = tmp_path / "linux"
    for name, text in {
        **SOURCE,
        "Makefile": "",
        "Kconfig": "",
        "arch/x86/Makefile": "",
        "mm/x.c": "x",
        ".git/HEAD": "",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    return made


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the words of each call of `make`, which is a script; no other program is looked for."""
    bzimage(tmp_path / "bzImage")
    make = tmp_path / "make"
    make.write_text(MAKE.format(folder=tmp_path))
    make.chmod(0o755)
    monkeypatch.setattr("hibernaut.lab.host.build.program", lambda _: str(make))
    return tmp_path / "told"


def built(tmp_path: Path, source: Path, cure: str, *fragments: Path) -> Built:
    """Build a kernel with the pretended `make`."""
    cache = Cache(tmp_path / "cache")
    return build_kernel(cache, plan_build(cache, str(source), cure_named(cure), fragments, 3))


def test_a_view_is_the_source_with_changes(tmp_path: Path, source: Path) -> None:
    """Links but for the files that a cure changes; what changes in the source is seen; .git is not there."""
    view, build = tmp_path / "view", tmp_path / "build"
    build.mkdir()
    make_view(view, source, {"kernel/power/snapshot.c": "changed"}, build)
    assert (view / "kernel/power/snapshot.c").read_text() == "changed"
    assert (source / "kernel/power/snapshot.c").read_text() == SOURCE["kernel/power/snapshot.c"]
    assert (view / "mm").is_symlink()
    assert not (view / "arch/x86/mm").is_symlink()
    assert (view / "mm/x.c").read_text() == "x"
    assert not (view / ".git").exists()
    (source / "new.c").touch()
    (source / "Kconfig").unlink()
    make_view(view, source, {}, build)
    assert (view / "kernel/power/snapshot.c").read_text() == SOURCE["kernel/power/snapshot.c"]
    assert (view / "new.c").exists()
    assert not (view / "Kconfig").is_symlink()


def test_an_older_view_does_not_lead_into_the_source(tmp_path: Path, source: Path) -> None:
    """Cures of a newer hibernaut change other files: links in their way become folders and copies, and back."""
    view, build = tmp_path / "view", tmp_path / "build"
    (view / "arch").mkdir(parents=True)
    (view / "arch/x86").symlink_to(source / "arch/x86")
    (view / "mm").mkdir()
    (view / "mm/x.c").write_text("an older cure's")
    (view / "kernel/power").mkdir(parents=True)
    (view / "kernel/power/snapshot.c").symlink_to(source / "kernel/power/snapshot.c")
    (view / "gone/deep").mkdir(parents=True)
    changed = {name: after for name, (_, after) in cure_named("fixmap").changes(source).items()}
    make_view(view, source, changed, build)
    assert {name: (view / name).read_text() for name in changed} == changed
    assert {name: (source / name).read_text() for name in changed} == {name: SOURCE[name] for name in changed}
    assert (view / "mm/x.c").read_text() == "x"
    assert not (view / "gone").exists()


def test_only_what_changes_is_compiled_again(tmp_path: Path, source: Path) -> None:
    """Unchanged copies keep their time; a header with known users keeps it, too, and only their objects go."""
    view, build = tmp_path / "view", tmp_path / "build"
    header, snapshot = "arch/x86/include/asm/fixmap.h", "kernel/power/snapshot.c"
    os.utime(source / header, (1000, 1000))
    for name, text in (("user", "set(FIX_BTMAP_END);"), ("other", "set(FIX_APIC_BASE);")):
        (source / f"{name}.c").write_text(text)
        (build / "mm").mkdir(parents=True, exist_ok=True)
        (build / f"mm/{name}.o").touch()
        (build / f"mm/.{name}.o.cmd").write_text(f"cmd_mm/{name}.o := gcc\n\nsource_mm/{name}.o := {source}/{name}.c\n")
    make_view(view, source, {}, build)
    (build / "mm/user.o").touch()
    os.utime(view / snapshot, (2000, 2000))
    make_view(view, source, {}, build)
    assert (view / snapshot).stat().st_mtime == 2000
    assert (build / "mm/user.o").exists()
    changed = {name: after for name, (_, after) in cure_named("fixmap").changes(source).items()}
    make_view(view, source, changed, build)
    assert "FIX_HIBERNATE" in (view / header).read_text()
    assert (view / header).stat().st_mtime == 1000
    assert (view / snapshot).stat().st_mtime > 2000
    assert not (build / "mm/user.o").exists()
    assert (build / "mm/other.o").exists()


def test_results_stay(tmp_path: Path, source: Path, pretended: Path) -> None:
    """Stock and cure are built in one folder, and each keeps its kernel and what a module is built with."""
    (tmp_path / "more").write_text("CONFIG_MORE=y\n# CONFIG_LESS is not set\n")
    stock, cure = built(tmp_path, source, "stock"), built(tmp_path, source, "fixmap")
    kernels = [kernel_of_tree(one.tree) for one in (stock, cure)]
    assert [kernel.release for kernel in kernels] == ["6.7.8-mine"] * 2
    assert b"FIX_HIBERNATE" not in kernels[0].vmlinuz.read_bytes()
    assert b"FIX_HIBERNATE" in kernels[1].vmlinuz.read_bytes()
    assert kbuild_folder(stock.tree).resolve() == kbuild_folder(cure.tree).resolve()
    assert (stock.tree / "drivers/mine.ko").exists()
    assert {"CONFIG_KFENCE=y"} <= set(stock.unset)
    assert all("-j3" in line for line in pretended.read_text().splitlines() if "bzImage" in line)
    other = built(tmp_path, source, "stock", tmp_path / "more")
    assert other.tree != stock.tree
    assert "CONFIG_MORE=y" in (other.tree / ".config").read_text()
    assert (source / "kernel/power/snapshot.c").read_text() == SOURCE["kernel/power/snapshot.c"]


def test_a_package_is_built_once(tmp_path: Path, source: Path, pretended: Path) -> None:
    """Its source does not change; another cure, other settings, and a result that is gone are built."""
    cache = Cache(tmp_path / "cache")
    shutil.copytree(source, cache.root / "sources/6.1")
    plan = plan_build(cache, "6.1", cure_named("stock"))
    first, second = build_kernel(cache, plan), build_kernel(cache, plan)
    assert (first.fresh, second.fresh) == (True, False)
    assert (first.tree, first.release, first.unset) == (second.tree, second.release, second.unset)
    calls = len(pretended.read_text().splitlines())
    assert build_kernel(cache, plan_build(cache, "6.1", cure_named("no-flush"))).fresh
    assert len(pretended.read_text().splitlines()) == calls + 1  # configured once
    shutil.rmtree(first.tree)
    assert build_kernel(cache, plan).fresh
    assert not build_kernel(cache, plan).fresh
    os.utime(cache.root / "sources/6.1/Makefile", (3000, 3000))  # another package
    assert build_kernel(cache, plan).fresh


@pytest.mark.usefixtures("pretended")
def test_a_configuration_of_other_settings_is_not_taken(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends between writing new settings and configuring: the next one configures by them."""
    cache = Cache(tmp_path / "cache")
    line = KERNEL_LINES["6.12"]
    shutil.copytree(source, cache.root / "sources" / "6.12")
    plan = plan_build(cache, "6.12", cure_named("stock"))
    assert plan.line is line
    build_kernel(cache, plan)
    more = tmp_path / "more"
    more.write_text("CONFIG_MORE=y\n")
    changed = replace(plan, fragments=(*plan.fragments, more))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_run_make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_kernel(cache, changed)
    built = build_kernel(cache, changed)
    assert "CONFIG_MORE=y" in (built.tree / ".config").read_text()


def test_a_build_that_a_loss_of_power_ended_begins_anew(
    tmp_path: Path, source: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make` takes files for whole by their times: what another boot left unsynced goes; what was kept stays."""
    boot, marker = tmp_path / "boot", "unsynced"
    boot.write_text("first")
    monkeypatch.setattr(build, "BOOT_ID", boot)
    (tmp_path / "fail").write_text("x.c:3:4: error: bad\n")

    def left(expected: bool) -> Path:
        with pytest.raises(LabUnavailable):
            built(tmp_path, source, "stock")
        (work,) = (tmp_path / "cache/built").glob("*/work")
        assert (work / marker).read_text() == boot.read_text()
        assert (work / "build/half.o").exists() == expected
        (work / "build/half.o").touch()
        return work

    left(expected=False)
    work = left(expected=True)  # interrupted in the same boot: the system has what was written
    boot.write_text("second")
    left(expected=False)
    (tmp_path / "fail").unlink()
    built(tmp_path, source, "stock")
    assert not (work / marker).exists()
    boot.write_text("third")
    built(tmp_path, source, "fixmap")
    assert (work / "build/half.o").exists()
    assert pretended.exists()


def test_a_build_that_fails(tmp_path: Path, source: Path, pretended: Path) -> None:
    """The compiler's first error and the log; an older result stays."""
    tree = built(tmp_path, source, "stock").tree
    (tmp_path / "fail").write_text("x.c:1:2: warning: odd\nx.c:3:4: error: bad\nmake: *** [x.o] Error 1\n")
    with pytest.raises(LabUnavailable, match=r"\(fixmap\) failed: x\.c:3:4: error: bad; see .*/log$"):
        built(tmp_path, source, "fixmap")
    (tmp_path / "fail").write_text("x.c:1:10: fatal error: gelf.h: No such file or directory\n")
    with pytest.raises(LabUnavailable, match=r"gelf\.h: .*; try: apt-get install libelf-dev"):
        built(tmp_path, source, "stock")
    assert (tree / RELEASE).exists()
    assert not (tree.parent / "fixmap").exists()
    assert pretended.exists()


def test_sources_that_are_none(tmp_path: Path, source: Path) -> None:
    """Neither a line nor a folder; a folder without a kernel's Makefile; a source that the cure does not fit."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabUnavailable, match=r"no kernel line or source folder '5\.4'; expected 6\.1"):
        plan_build(Cache(tmp_path), "5.4", cure_named("stock"))
    with pytest.raises(FormatError, match=r"not a kernel's source tree: .*empty; expected Makefile in it"):
        plan_build(Cache(tmp_path), str(tmp_path / "empty"), cure_named("stock"))
    (source / "kernel/power/snapshot.c").write_text("")
    with pytest.raises(FormatError, match="does not fit"):
        built(tmp_path, source, "fixmap")


def test_settings_that_a_kernel_lacks(tmp_path: Path) -> None:
    """The last value of each symbol counts; what is not in the configuration is n."""
    (tmp_path / ".config").write_text('CONFIG_A=y\nCONFIG_S="text"\n# CONFIG_B is not set\n')
    settings = 'CONFIG_A=m\nCONFIG_B=y\nCONFIG_A=y\nCONFIG_S="text"\nCONFIG_C=n\n'
    assert unset_in(tmp_path / ".config", settings) == ("CONFIG_B=y",)


def test_the_command(tmp_path: Path, source: Path, pretended: Path) -> None:
    """The result's folder on standard output; the patch; the list; refusals."""
    words = ("lab", "build", "--source", source, "--cache", tmp_path / "cache")
    result = hibernaut(*words, "--cure", "fixmap", "--patch", tmp_path / "x.patch")
    assert (result.status, kernel_of_tree(Path(result.out.strip())).release) == (0, "6.7.8-mine")
    assert "Linux 6.7.8-mine, fixmap: built in" in result.err
    assert "not in the configuration of this kernel: CONFIG_KFENCE=y" in result.err
    assert (tmp_path / "x.patch").read_text().startswith("Subject: [PATCH] x86/hibernate: ")
    assert hibernaut(*words, "--quiet").out == ""
    document = hibernaut(*words, "--json").document
    assert (document["cure"], document["fresh"], document["patch"]) == ("stock", True, None)
    assert "already exists" in hibernaut(*words, "--patch", tmp_path / "x.patch").err
    assert "no cure 'x'" in refused(*words, "--cure", "x")
    listed = hibernaut("lab", "build", "--list", "--json").document["cures"]
    assert [one["name"] for one in listed][:2] == ["stock", "fixmap"]
    assert all(one["name"] in hibernaut("lab", "build", "--list").out for one in listed)
    assert pretended.exists()


def test_a_dry_run_builds_nothing(tmp_path: Path) -> None:
    """The commands, in text and JSON; nothing is written."""
    words = (
        "lab",
        "build",
        "--source",
        "6.1",
        "--cure",
        "fixmap",
        "--jobs",
        "2",
        "--cache",
        tmp_path / "cache",
        "--dry-run",
    )
    lines = hibernaut(*words).out.splitlines()
    assert [line.split()[0] for line in lines] == ["apt-get", "env", "make"]
    assert lines[2].endswith("-j2 bzImage modules")
    document = hibernaut(*words, "--json").document
    assert document["tree"] == str(tmp_path / "cache/built/6.1/fixmap")
    assert hibernaut(*words, "--quiet").out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not os.environ.get(KERNEL_BUILD_SWITCH), reason=f"half an hour: {KERNEL_BUILD_SWITCH}=1 builds kernels"
)
def test_another_cure_is_built_as_from_nothing(tmp_path: Path) -> None:
    """The cure after stock, of which a few objects are compiled, is bit by bit the cure built in an empty folder."""
    shared = Cache()
    cure = cure_named("fixmap")
    build_kernel(shared, plan_build(shared, "6.1", cure_named("stock")))
    after_stock = build_kernel(shared, plan_build(shared, "6.1", cure))
    alone = Cache(tmp_path)
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/6.1").symlink_to(shared.root / "sources/6.1")
    from_nothing = build_kernel(alone, plan_build(alone, "6.1", cure))
    for name in (BZIMAGE, Path("System.map")):
        assert filecmp.cmp(after_stock.tree / name, from_nothing.tree / name, shallow=False)
