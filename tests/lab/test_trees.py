# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of build trees: small fake trees, each with one defect; the module's build with a `make` that only tells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hibernaut.errors import FormatError, HibernautError, LabUnavailable
from hibernaut.lab.guest.initramfs import module_order
from hibernaut.lab.guest.region import REGION_MODULE, region_module
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.programs import first_error
from hibernaut.lab.host.trees import (
    BZIMAGE,
    RELEASE,
    Configuration,
    compiler_words,
    kbuild_folder,
    kernel_of_tree,
    modules_of_tree,
)
from tests.cli.run import hibernaut, refused
from tests.lab.test_initramfs import module
from tests.lab.test_kernels import bzimage

CONFIGURATION = "CONFIG_X86_64=y\nCONFIG_MODULES=y\nCONFIG_CC_IS_GCC=y\n# CONFIG_SMP is not set\n"
BUILTIN = "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A build tree with all that is read of it."""
    made = tmp_path / "tree"
    for path, text in ((".config", CONFIGURATION), (RELEASE, "6.7.8-mine\n"), ("modules.builtin", BUILTIN)):
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    (made / "Makefile").write_text("# of a kernel\n")
    (made / BZIMAGE).parent.mkdir(parents=True)
    bzimage(made / BZIMAGE)
    return made


def test_the_kernel_of_a_tree(tree: Path) -> None:
    """Its release and its bzImage; a kernel with everything built in boots without modules."""
    kernel = kernel_of_tree(tree)
    assert (kernel.release, kernel.vmlinuz, kernel.tree) == ("6.7.8-mine", tree / BZIMAGE, tree)
    assert module_order(kernel.modules) == {}


def delete(path: str | Path) -> Callable[[Path], object]:
    """Return a change of a tree that deletes a file."""
    return lambda tree: (tree / path).unlink()


def write(path: str | Path, text: str) -> Callable[[Path], object]:
    """Return a change of a tree that writes a file."""
    return lambda tree: (tree / path).write_text(text)


def unconfigured(tree: Path) -> None:
    """Leave a source tree as it is unpacked."""
    (tree / ".config").unlink()
    (tree / "Kbuild").touch()
    (tree / "Kconfig").touch()


@pytest.mark.parametrize(
    ("change", "kind", "said", "advice"),
    [
        (delete(".config"), FormatError, "not a kernel build tree: ", "give the folder in which `make` built"),
        (unconfigured, LabUnavailable, "not configured: it has no .config", "configure and build it there"),
        (write(".config", "CONFIG_ARM64=y\n"), LabUnavailable, "CONFIG_X86_64 is not set", "make ARCH=x86_64"),
        (write(".config", "# CONFIG_X86_64 is not set\n"), LabUnavailable, "is not for x86-64", "make ARCH=x86_64"),
        (delete(RELEASE), LabUnavailable, f"not built: it has no {RELEASE}", "run `make -C "),
        (delete(BZIMAGE), LabUnavailable, f"not built: it has no {BZIMAGE}", "run `make -C "),
        (write(RELEASE, "6.7.8-other"), FormatError, "expected release 6.7.8-other of", "run `make -C "),
        (write(BZIMAGE, "no kernel"), FormatError, "not a bzImage", None),
        (shutil.rmtree, FileNotFoundError, "No such file or directory", None),
    ],
)  # fmt: skip
def test_a_tree_without_a_kernel(
    tree: Path, change: Callable[[Path], object], kind: type[Exception], said: str, advice: str | None
) -> None:
    """One line: the defect, the tree, and the next step."""
    change(tree)
    with pytest.raises(kind) as caught:
        kernel_of_tree(tree)
    line = str(caught.value)
    assert said in line
    assert str(tree) in line
    assert "\n" not in line
    if advice:
        assert isinstance(caught.value, HibernautError)
        assert (caught.value.advice or "").startswith(advice) or advice in line


@pytest.mark.parametrize("order", ["drivers/block/virtio_blk.o\n", "kernel/drivers/block/virtio_blk.ko\n"])
def test_modules_are_taken_from_the_tree(tree: Path, order: str) -> None:
    """Since 6.3 modules.order lists objects, before it has modules below `kernel/`; leftovers are not listed."""
    (tree / "modules.order").write_text(f"{order}kernel/bpf/never_built.o\n")
    module(tree / "drivers/block/virtio_blk.ko", ["depends="])
    module(tree / "drivers/virtio/virtio_pci.ko", ["depends="])  # of an older configuration
    assert modules_of_tree(tree) == [tree / "drivers/block/virtio_blk.ko"]
    assert list(module_order(tree)) == ["virtio_blk"]


def test_a_tree_without_a_disk_driver(tree: Path) -> None:
    """The missing symbol is named."""
    (tree / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    with pytest.raises(LabUnavailable, match=r"no virtio_blk; set CONFIG_VIRTIO_BLK=y"):
        module_order(tree)


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that only these compilers are installed."""
    monkeypatch.setattr(
        "hibernaut.lab.host.trees.shutil.which", lambda name: f"/usr/bin/{name}" if name in names else None
    )


@pytest.mark.parametrize(
    ("configuration", "there", "words"),
    [
        ({"CC_IS_GCC": "y", "CC_VERSION_TEXT": "gcc (Debian 12) 12.2.0"}, ("gcc",), []),
        ({"CC_IS_GCC": "y", "CC_VERSION_TEXT": "gcc-13 (Debian) 13.1"}, ("gcc", "gcc-13"), ["CC=gcc-13"]),
        ({"CC_IS_GCC": "y", "CC_VERSION_TEXT": "gcc-13 (Debian) 13.1"}, ("gcc",), []),
        ({"CC_IS_CLANG": "y", "LD_IS_LLD": "y", "CLANG_VERSION": "140006"}, ("gcc", "clang"), ["LLVM=1"]),
        ({"CC_IS_CLANG": "y", "LD_IS_LLD": "y", "CLANG_VERSION": "140006"}, ("clang-14",), ["LLVM=-14"]),
        ({"CC_IS_CLANG": "y", "LD_IS_BFD": "y", "CLANG_VERSION": "140006"}, ("clang",), ["CC=clang"]),
    ],
)
def test_the_compiler_of_a_tree(
    monkeypatch: pytest.MonkeyPatch, configuration: dict[str, str], there: tuple[str, ...], words: list[str]
) -> None:
    """The tree's own if it is installed; LLVM's tools for clang."""
    installed(monkeypatch, *there)
    assert compiler_words(Configuration(Path(".config"), configuration)) == words


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"CC_IS_GCC": "y"}, "gcc is not installed"),
        ({"CC_IS_CLANG": "y", "CC_VERSION_TEXT": "Debian clang 14", "CLANG_VERSION": "140006"},
         "clang is not installed, and the kernel was built with Debian clang 14; try: apt-get install clang-14 lld-14"),
    ],
)  # fmt: skip
def test_a_compiler_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, configuration: dict[str, str], said: str
) -> None:
    """The line says which compiler built the kernel, and what installs one."""
    installed(monkeypatch)
    with pytest.raises(LabUnavailable) as caught:
        compiler_words(Configuration(Path(".config"), configuration))
    assert said in str(caught.value)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the words of each call of `make`, which is a script that makes a module."""
    make = tmp_path / "make"
    make.write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/told"\n'
        'for word; do case "$word" in M=*) echo built >"${word#M=}/hlab_region.ko" ;; esac; done\n'
        f'[ ! -e "{tmp_path}/fail" ] || {{ cat "{tmp_path}/fail" >&2; exit 2; }}\n'
    )
    make.chmod(0o755)
    monkeypatch.setattr("hibernaut.lab.guest.region.program", lambda _: str(make))
    return tmp_path / "told"


def test_the_module_is_built_once_for_a_configuration(tree: Path, told: Path, tmp_path: Path) -> None:
    """It is built again after a change of configuration or of the symbols' versions, and not after another build."""
    cache = Cache(tmp_path / "cache")
    kernel = kernel_of_tree(tree)
    first = region_module(cache, kernel)
    assert first.read_text() == "built\n"
    assert "KBUILD_MODPOST_WARN=1" in told.read_text()  # no Module.symvers
    assert f"-C {tree} M=" in told.read_text()
    assert region_module(cache, kernel) == first
    (tree / "Module.symvers").write_text("0x0\tprintk\tvmlinux\tEXPORT_SYMBOL\n")
    second = region_module(cache, kernel)
    assert "KBUILD_MODPOST_WARN" not in told.read_text().splitlines()[-1]
    (tree / ".config").write_text(CONFIGURATION + "CONFIG_NUMA=y\n")
    third = region_module(cache, kernel)
    assert len({first, second, third}) == len(told.read_text().splitlines()) == 3


def test_a_module_that_cannot_be_built(tree: Path, told: Path, tmp_path: Path) -> None:
    """The compiler's first error; a kernel without modules; a result whose build folder is gone."""
    cache, kernel = Cache(tmp_path / "cache"), kernel_of_tree(tree)
    (tmp_path / "fail").write_text("warning: the compiler differs\nx.c:3:1: error: no such thing\nx.c:9:1: error: b\n")
    with pytest.raises(LabUnavailable, match=r"against .*tree failed: x\.c:3:1: error: no such thing; run `make"):
        region_module(cache, kernel)
    assert told.exists()
    (tree / "build").symlink_to(tmp_path / "gone")
    with pytest.raises(LabUnavailable, match=r"build has no Makefile; build the kernel again"):
        region_module(cache, kernel)
    (tree / ".config").write_text("CONFIG_X86_64=y\n# CONFIG_MODULES is not set\n")
    with pytest.raises(LabUnavailable, match=r"CONFIG_MODULES is not set in \.config; set CONFIG_MODULES=y"):
        region_module(cache, kernel)
    assert not list((tmp_path / "cache").rglob(REGION_MODULE))


def test_a_result_is_built_against_in_its_build_folder(tree: Path, tmp_path: Path) -> None:
    """The link `build`, as in lib/modules/RELEASE."""
    assert kbuild_folder(tree) == tree
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "Makefile").touch()
    (tree / "build").symlink_to(shared)
    assert kbuild_folder(tree) == tree / "build"


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        ("  CC x.o\nx.c:1: warning: y\nx.c:2:3: error: bad\nmake: *** [x.o] Error 1\n", "x.c:2:3: error: bad"),
        ("ld: x.o: undefined reference to `y'\n", "ld: x.o: undefined reference to `y'"),
        ("make[2]: *** No rule to make target 'x'.  Stop.\n", "make[2]: *** No rule to make target 'x'.  Stop."),
        ("  CC lib/errors.o\n  CC fs/terror.o\n", None),
    ],
)
def test_the_first_error_of_a_build(printed: str, error: str | None) -> None:
    """Names of files that only contain the word are not errors."""
    assert first_error(printed) == error


def test_a_tree_on_the_command_line(tree: Path, tmp_path: Path) -> None:
    """--tree plans its bzImage, names the tree's defect, and excludes --kernel."""
    assert str(tree / BZIMAGE) in hibernaut("lab", "boot", "--tree", tree, "--dry-run").out
    cache = ("--cache", tmp_path / "cache")
    assert "--kernel and --modules" in hibernaut("lab", "boot", "--tree", tree, "--kernel", "6.1", *cache).err
    (tree / BZIMAGE).unlink()
    assert f"run `make -C {tree} bzImage modules`" in refused("lab", "boot", "--tree", tree, *cache)
