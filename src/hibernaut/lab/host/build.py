# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels built from source: a small configuration, a change of ours or none, a result that `kernel_of_tree` takes.

Below the cache's `built/NAME`, NAME being a kernel line or a source folder with its configuration:

`work/source`
    a view of the source: links to it, and copies of the files that any cure changes. The source itself is never
    written to.
`work/build`
    the folder of `make O=`, the same for all cures and the kernel without a change, so that another cure rebuilds a few
    objects. Nearly every file includes the header that the slot is declared in; an edit of such a header names its
    users (`Edit.users`), and only their objects are deleted (`tests/lab/test_build.py` compares with a whole build).
`work/unsynced`
    there while files of `work` may not be on the disk: the boot in which they were written. After another boot, `make`
    would take a file for whole whose time is on the disk and whose content is not: all of `work` is built again.
`CURE`
    the result: bzImage, release, configuration, symbols, lists of modules and the modules, in their places in a build
    tree; and the link `build` to the folder that modules are built in. It stays as it is when another cure is built.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import FormatError, LabUnavailable
from hibernaut.lab.cure.cures import Cure, cures
from hibernaut.lab.host.cache import Cache
from hibernaut.lab.host.debian import Archive
from hibernaut.lab.host.kernels import KERNEL_LINES, PackagedLine
from hibernaut.lab.host.programs import first_error, program, run
from hibernaut.lab.host.trees import (
    BZIMAGE,
    CONFIG,
    RELEASE,
    SYMBOL_VERSIONS,
    Configuration,
    compiler_words,
    modules_of_tree,
)
from hibernaut.volumes.output import sync_file_system, sync_folder, write_file

__all__ = ["BuildPlan", "Built", "build_kernel", "plan_build", "source_of", "source_tree", "unset_in"]

SMALL_CONFIG = Path(__file__).parent.parent / "cure" / "small.config"
UNUSED_IN_SOURCES = ("*/Documentation/*/*", "*/tools/testing/*/*", "*/asic_reg")
"""Parts of a source package that are not unpacked: a quarter of its bytes, and no kernel for a guest needs them."""
RESULT_FILES = (
    CONFIG,
    RELEASE,
    BZIMAGE,
    SYMBOL_VERSIONS,
    Path("System.map"),
    Path("modules.builtin"),
    Path("modules.order"),
    Path("include/config/auto.conf"),
)
STAMP = "hibernaut.json"
UNSYNCED = "unsynced"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ENVIRONMENT = {
    "LC_ALL": "C",
    # The same sources give the same kernel; and stock and cure, having one version, resume from each other's images.
    "KBUILD_BUILD_USER": "hibernaut",
    "KBUILD_BUILD_HOST": "lab",
    "KBUILD_BUILD_TIMESTAMP": "2026-01-01",
    "KBUILD_BUILD_VERSION": "1",
}
SOURCE_OF_OBJECT = re.compile(r"^source_\S+ := (\S+)$", re.MULTILINE)
LIBELF_HEADERS = ("gelf.h", "libelf")


@dataclass(frozen=True)
class BuildPlan:
    """A kernel to build.

    Attributes:
        name: name of the source and its configuration in the cache.
        source: source folder; for a kernel line, the place of its unpacked package.
        line: the kernel line whose package it is; None for a folder of the user's own.
        cure: change to the source.
        fragments: files with settings, later ones override earlier ones.
        jobs: number of jobs of `make`.
    """

    name: str
    source: Path
    line: PackagedLine | None
    cure: Cure
    fragments: tuple[Path, ...]
    jobs: int

    def result(self, cache: Cache) -> Path:
        """Return the folder of the result."""
        return cache.root / "built" / self.name / self.cure.name

    def work(self, cache: Cache) -> Path:
        """Return the folder of the view of the source and of the build."""
        return cache.root / "built" / self.name / "work"

    def commands(self, work: Path) -> tuple[list[str], list[str]]:
        """Return the calls of `make` that configure and that build."""
        make = ["make", "-C", str(work / "source"), f"O={work / 'build'}", "ARCH=x86_64"]
        return [*make, "allnoconfig"], [*make, f"-j{self.jobs}", "bzImage", "modules"]

    def steps(self, cache: Cache) -> list[list[str]]:
        """Return all commands of the build as words, for display."""
        work = self.work(cache)
        configure, compile_all = self.commands(work)
        download = [] if self.line is None else [["apt-get", "download", f"linux-source-{self.line.name}"]]
        return [*download, ["env", f"KCONFIG_ALLCONFIG={work / 'settings'}", *configure], compile_all]


@dataclass(frozen=True)
class Built:
    """A built kernel.

    Attributes:
        tree: folder of the result, for `kernel_of_tree`.
        release: release of the kernel.
        fresh: whether anything was built; False if the cache had it.
        seconds: duration of the build; 0 if the cache had it.
        unset: settings of the fragments that the configuration does not have, as lines of a fragment.
    """

    tree: Path
    release: str
    fresh: bool
    seconds: float
    unset: tuple[str, ...]


def plan_build(
    cache: Cache, source: str, cure: Cure, fragments: Iterable[Path] = (), jobs: int | None = None
) -> BuildPlan:
    """Return what a build would do. Nothing is downloaded or written.

    Args:
        cache: cache for source and result.
        source: name of a kernel line, or a folder with a kernel's source.
        cure: change to the source.
        fragments: files with settings, added to the small configuration.
        jobs: number of jobs; that of the CPUs if None.

    Raises:
        LabUnavailable: neither a kernel line nor a folder.
        FormatError: the folder is not a kernel's source.
        OSError: a fragment cannot be read.
    """
    added = tuple(Path(one).absolute() for one in fragments)
    config = hashlib.sha256(b"\0".join(path.read_bytes() for path in added)).hexdigest()[:8]
    line = KERNEL_LINES.get(source)
    if line is not None:
        name, folder = source, cache.root / "sources" / source
    else:
        folder = Path(source).absolute()
        if not folder.is_dir():
            known = ", ".join(KERNEL_LINES)
            raise LabUnavailable(
                f"no kernel line or source folder {source!r}; expected {known}, or a folder",
                advice="give one of these as --source",
            )
        _require_source(folder)
        name = f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    if added:
        name += f"-config-{config}"
    return BuildPlan(name, folder, line, cure, (SMALL_CONFIG, *added), jobs or os.cpu_count() or 1)


def _require_source(folder: Path) -> None:
    for needed in ("Makefile", "Kconfig", "arch/x86/Makefile"):
        if not (folder / needed).is_file():
            raise FormatError(
                "not a kernel's source tree",
                source=str(folder),
                expected=f"{needed} in it",
                advice="give the folder with the kernel's own Makefile",
            )


def source_tree(cache: Cache, line: PackagedLine, mirror: str | None = None) -> Path:
    """Return the source of a kernel line, from the cache, or Debian's package of it, downloaded and unpacked.

    A cached source is kept; delete the cache's `sources/NAME` to get a newer one.

    Raises:
        LabUnavailable: its package cannot be downloaded or unpacked.
    """

    def make(folder: Path) -> None:
        package = folder / "package"
        package.mkdir()
        Archive(cache, line.suite, mirror).unpack([f"linux-source-{line.name}"], package)
        archives = list(package.glob("usr/src/linux-source-*.tar.xz"))
        if len(archives) != 1:
            raise LabUnavailable(f"the package linux-source-{line.name} holds {len(archives)} archives; expected 1")
        program("xz")  # tar runs it
        left_out = [f"--exclude={pattern}" for pattern in UNUSED_IN_SOURCES]
        run(
            [
                program("tar"),
                "-x",
                "--touch",  # newer than objects that were built from an older package
                "--touch",  # newer than what was built from an older package, for `make`
                "--strip-components=1",
                "--no-same-owner",
                *left_out,
                "-f",
                archives[0],
                "-C",
                folder,
            ],
            doing=f"unpacking the source of {line.name}",
        )
        shutil.rmtree(package)

    with cache.locked():
        return cache.folder(f"sources/{line.name}", make)


def source_of(cache: Cache, plan: BuildPlan, mirror: str | None = None) -> Path:
    """Return the source folder of a plan. Raises LabUnavailable, FormatError: see `source_tree` and `plan_build`."""
    source = plan.source if plan.line is None else source_tree(cache, plan.line, mirror)
    _require_source(source)
    return source


def build_kernel(
    cache: Cache, plan: BuildPlan, mirror: str | None = None, progress: Callable[[int], None] = lambda _: None
) -> Built:
    """Build a kernel, or return it from the cache if its source is a package and nothing has changed.

    A source folder of the user's own may have changed: `make` decides what is built again.

    Args:
        cache: cache for source, build and result.
        plan: see `plan_build`.
        mirror: mirror of Debian's archive; as apt is configured if None.
        progress: called with a number of steps that `make` has done.

    Raises:
        LabUnavailable: a program or package is missing, or the build fails; with the compiler's first error.
        FormatError: the cure does not fit the source.
        OSError: a file cannot be read or written.
    """
    source = source_of(cache, plan, mirror)
    changed = plan.cure.changes(source)
    settings = "".join(path.read_text() for path in plan.fragments)
    stamp = {
        "source": (source / "Makefile").stat().st_mtime_ns,
        "settings": _digest(settings),
        "cure": _digest(json.dumps(changed, sort_keys=True)),
    }
    result = plan.result(cache)
    with cache.locked(f"built/{plan.name}.lock"):
        if plan.line is not None and _stamp_of(result) == stamp:
            return Built(
                result, (result / RELEASE).read_text().strip(), False, 0.0, unset_in(result / CONFIG, settings)
            )
        started = time.monotonic()
        work = plan.work(cache)
        build = work / "build"
        _begin(work)
        build.mkdir(parents=True, exist_ok=True)
        make_view(work / "source", source, {name: after for name, (_, after) in changed.items()}, build)
        _make(plan, work, settings, progress)
        _keep(build, result, stamp)
        (work / UNSYNCED).unlink()  # `_keep` has synced the file system
        seconds = time.monotonic() - started
        return Built(result, (result / RELEASE).read_text().strip(), True, seconds, unset_in(result / CONFIG, settings))


def unset_in(config: Path, settings: str) -> tuple[str, ...]:
    """Return settings that a configuration does not have, as lines of a fragment. Raises OSError.

    Args:
        config: the configuration, .config.
        settings: text of a fragment.
    """
    values = Configuration.read(config).values
    wanted = Configuration.parse(config, settings).values
    return tuple(f"CONFIG_{name}={value}" for name, value in wanted.items() if values.get(name, "n") != value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _stamp_of(result: Path) -> object:
    try:
        return json.loads((result / STAMP).read_text())
    except (OSError, ValueError):
        return None


# ---- the view of the source ----


def make_view(view: Path, source: Path, changed: Mapping[str, str], build: Path) -> None:
    """Make a folder that reads like a source tree with some files changed; the source stays as it is.

    Folders that hold a file which any cure changes are folders of the view, and such files are copies, written only if
    their content changes, so that `make` builds no more than necessary. Everything else is a link.

    Args:
        view: the folder, made or brought up to date.
        source: the source tree.
        changed: path below the source -> content.
        build: folder of `make O=`. Objects of the users of a changed header are deleted there.
    """
    users = {edit.file: edit.users for cure in cures().values() for edit in cure.edits if edit.users}
    copied = {name for cure in cures().values() for name in cure.files if (source / name).is_file()} | set(changed)
    folders = sorted({parent for name in copied for parent in Path(name).parents} | {Path()})
    for folder in folders:  # each after the folder that it is in
        _own_folder(view / folder)
        names = {path.name for path in (source / folder).iterdir()} - {".git"}
        for stale in {path.name for path in (view / folder).iterdir()} - names:
            _remove(view / folder / stale)
        for name in names:
            path = folder / name
            if path in folders:
                continue
            if str(path) in copied:
                before = (source / path).read_text(errors="surrogateescape")
                _write_if_changed(
                    view / path, changed.get(str(path), before), source / path, users.get(str(path)), build
                )
            elif not (view / path).is_symlink():
                _remove(view / path)
                (view / path).symlink_to(source / path)


def _own_folder(path: Path) -> None:
    """Make a folder of the view. A link in its place, of an older view, would lead into the source: it goes."""
    if path.is_symlink():
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_if_changed(path: Path, content: str, original: Path, users: str | None, build: Path) -> None:
    """Write a file of the view; one with known users keeps its time, and the objects of its users go first."""
    if path.is_symlink():  # of an older view, into the source
        path.unlink()
    if path.is_file() and path.read_text(errors="surrogateescape") == content:
        return
    if users is None:
        path.write_text(content, errors="surrogateescape")
        return
    for made in _objects_using(re.compile(users), build):
        made.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, errors="surrogateescape")
    shutil.copystat(original, partial)
    partial.rename(path)


def _objects_using(names: re.Pattern[str], build: Path) -> Iterator[Path]:
    """Yield the objects of a build whose sources contain a name; Kbuild notes the source in the object's .cmd file."""
    for command in build.rglob(".*.o.cmd"):
        noted = SOURCE_OF_OBJECT.search(command.read_text(errors="replace"))
        if noted and (source := build / noted[1]).is_file() and names.search(source.read_text(errors="replace")):
            yield command.with_name(command.name.removeprefix(".").removesuffix(".cmd"))


# ---- make ----


def _make(plan: BuildPlan, work: Path, settings: str, progress: Callable[[int], None]) -> None:
    """Configure and build in a work folder. Raises LabUnavailable, with the first error that is printed."""
    for tool in ("gcc", "flex", "bison", "bc"):
        program(tool)
    build, fragment, log = work / "build", work / "settings", work / "log"
    configure, compile_all = plan.commands(work)
    if plan.line is None or not (build / CONFIG).is_file() or _read(fragment) != settings:
        (build / CONFIG).unlink(missing_ok=True)  # one of other settings must not be taken for that of these
        fragment.write_text(settings)
        _run_make(configure, log, {"KCONFIG_ALLCONFIG": str(fragment)}, plan, progress)
    words = compiler_words(Configuration.read(build / CONFIG))
    if not Configuration.read(build / CONFIG).has("MODULES"):
        compile_all.remove("modules")
    _run_make([*compile_all, *words], log, {}, plan, progress)


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _run_make(
    command: list[str], log: Path, env: Mapping[str, str], plan: BuildPlan, progress: Callable[[int], None]
) -> None:
    with (
        log.open("w", buffering=1) as out,
        subprocess.Popen(  # nosec B603 # make, and words of the build
            [program("make"), *command[1:]],
            env={**os.environ, **ENVIRONMENT, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as making,
    ):
        try:
            for line in making.stdout or ():
                out.write(line)
                progress(1)
        except BaseException:
            making.terminate()  # make ends its children
            raise
    if making.returncode:
        error = first_error(log.read_text(errors="replace")) or f"exit status {making.returncode}"
        what = f"building {plan.name} ({plan.cure.name}) failed: {error}"
        if any(word in error for word in LIBELF_HEADERS):
            raise LabUnavailable(what, cure="apt-get install libelf-dev")
        raise LabUnavailable(what, advice=f"see {log}")


def _begin(work: Path) -> None:
    """Note that a build begins in a work folder, which is emptied first if another boot left it unsynced.

    Raises:
        OSError: as the system reports it.
    """
    boot = BOOT_ID.read_text() if BOOT_ID.is_file() else ""
    work.mkdir(parents=True, exist_ok=True)
    if (_read(work / UNSYNCED) or boot) != boot:
        for path in work.iterdir():
            if path.name != UNSYNCED:  # which is replaced last
                _remove(path)
    write_file(work / UNSYNCED, boot.encode(), public=True)
    sync_folder(work.parent)


def _keep(build: Path, result: Path, stamp: Mapping[str, object]) -> None:
    """Copy the built kernel to its result, which is complete or absent: also while another one is replaced."""
    partial, old = (result.with_name(f".{result.name}.{word}") for word in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in (*RESULT_FILES, *(module.relative_to(build) for module in modules_of_tree(build))):
        if (build / path).is_file():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(build / path, partial / path)
    (partial / "build").symlink_to(Path("..") / build.relative_to(result.parent))
    (partial / STAMP).write_text(json.dumps(stamp))
    sync_file_system(partial)
    with suppress(FileNotFoundError):
        result.rename(old)  # removed in place, its stamp might outlive its kernel
    partial.rename(result)
    sync_folder(result.parent)  # else files of the old result might be gone before its name
    shutil.rmtree(old, ignore_errors=True)
