# SPDX-License-Identifier: GPL-2.0-or-later
"""The verifier in one file: it runs without the project, answers as `hibernaut verify`, and the hooks obey it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hibernaut.sealing.alone import _imported_file
from tests.cli.run import hibernaut
from tests.sealing.sealed import LAYOUT, PAGES, blocks_of, changed
from tests.sealing.verifier_file import FOLDER, verifier_file, verifier_maker
from tests.swsusp import naive

PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
CHROOT = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin")
SCRIPTS = {
    "resume": "sh",
    "initramfs-tools/hooks/hibernaut-verify": "sh",
    "initramfs-tools/scripts/local-top/hibernaut-verify": "sh",
    "dracut/91hibernaut-verify/module-setup.sh": "bash",
}
DEVICE = naive.build(PAGES, LAYOUT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the verifier, a sealed image, its keys and manifest, and a changed image."""
    tmp_path = tmp_path_factory.mktemp("alone")
    verifier_file(tmp_path)
    (tmp_path / "image").write_bytes(DEVICE)
    at = blocks_of(DEVICE)[1][4] * 4096 + 77
    (tmp_path / "touched").write_bytes(changed(DEVICE, at, b"other"))
    (tmp_path / "swap").write_bytes(changed(DEVICE, 2 * 4096 + 4086, b"SWAPSPACE2"))
    hibernaut("seal-key", tmp_path / "key")
    hibernaut("seal-key", tmp_path / "other")
    given = ("--offset", 2, "--manifest")
    assert hibernaut("seal", tmp_path / "image", "--key", tmp_path / "key", "--counter", 3, *given, tmp_path / "m").out
    (tmp_path / "secret").write_text("words\n")
    hibernaut("seal", tmp_path / "image", "--secret", tmp_path / "secret", *given, tmp_path / "n")
    return tmp_path


def alone(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the file with a bare Python: no site-packages, no environment, another folder."""
    command = [PYTHON, "-I", "-S", folder / "hibernaut-verify.pyz", *arguments]
    return subprocess.run(
        list(map(str, command)), env={}, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("image", "--key", "key.pub", "--manifest", "m"), 0),
        (("image", "--key", "key.pub", "--manifest", "m", "--least", "3"), 0),
        (("image", "--secret", "secret", "--manifest", "n"), 0),
        (("image", "--key", "key.pub", "--manifest", "m", "--least", "4"), 1),
        (("touched", "--key", "key.pub", "--manifest", "m"), 1),
        (("image", "--key", "other.pub", "--manifest", "m"), 2),
        (("image", "--key", "key", "--manifest", "m"), 2),
        (("image", "--key", "key.pub", "--manifest", "n"), 2),
        (("image", "--key", "key.pub"), 2),
        (("swap", "--key", "key.pub", "--manifest", "m"), 2),
        (("swap", "--key", "key.pub"), 2),
        (("nothing", "--key", "key.pub", "--manifest", "m"), 2),
        (("image", "--key", "key.pub", "--manifest", "nothing"), 2),
        (("image", "--manifest", "m"), 2),
        (("image", "--key", "key.pub", "--secret", "secret"), 2),
        (("image", "--key", "key.pub", "--least", "-1"), 2),
        (("image", "--nothing"), 2),
        ((), 2),
    ],
)
def test_it_answers_as_the_command_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int
) -> None:
    """The same status and, where there is a verdict, the same line; an error is one line as well."""
    given = (*arguments, "--offset", "2")
    done = alone(folder, *given)
    assert done.returncode == status, done.stderr
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert (done.stdout == "") == (status == 2)
    monkeypatch.chdir(folder)
    same = hibernaut("verify", *given)
    assert (same.status, same.out) == (status, done.stdout)
    assert alone(folder, *given, "-q").stdout == ""


def test_it_imports_nothing_but_the_standard_library(folder: Path) -> None:
    """The modules packed are all that it needs, and the same source gives the same bytes."""
    shutil.copy(folder / "hibernaut-verify.pyz", folder / "first")
    verifier_file(folder)
    assert (folder / "first").read_bytes() == (folder / "hibernaut-verify.pyz").read_bytes()
    assert (folder / "first").stat().st_mode & 0o111
    for name in verifier_maker().MODULES:
        text = (FOLDER.parents[1] / f"src/hibernaut/{name}.py").read_text()
        for package in ("numpy", "typer", "rich", "hibernaut.swsusp", "hibernaut.volumes"):
            assert f"\nimport {package}" not in text
            known = name == "__init__" or (package, name) == ("hibernaut.volumes", "sealing/counters")
            assert f"\nfrom {package}" not in text or known or "volumes/" in name


def test_a_module_that_puts_another_in_its_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `collections.abc` does since Python 3.13: its own file is read first, but no loaded module has it."""
    package = tmp_path / "replaced_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("import json, sys\nsys.modules[__name__] = json\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("replaced_package", "replaced_package.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    part = importlib.import_module("replaced_package.part")
    assert part.__file__ == json.__file__
    assert _imported_file("replaced_package.part") == str(package / "part.py")
    assert _imported_file("replaced_package") == str(package / "__init__.py")
    (tmp_path / "path.py").touch()
    assert _imported_file("os.path") is None


@pytest.mark.skipif(os.geteuid() != 0 or CHROOT is None, reason="chroot needs root")
def test_the_files_that_it_names_suffice(folder: Path) -> None:
    """In a root of these files and the interpreter's shared libraries it verifies, with a key and with a passphrase."""
    root = folder / "root"
    named = [Path(line) for line in alone(folder, "--files").stdout.splitlines()]
    assert Path(PYTHON) in [path.resolve() for path in named]
    libraries: set[Path] = set()
    for path in [*named, Path(PYTHON)]:
        if path.suffix == ".so" or os.path.realpath(path) == PYTHON:
            done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
            libraries |= {Path(word) for word in done.stdout.split() if word.startswith("/")}
    for path in {*named, *libraries, Path(PYTHON)}:
        target = root / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in ("hibernaut-verify.pyz", "image", "touched", "key.pub", "secret", "m", "n"):
        shutil.copy(folder / name, root / name)
    for arguments, status in (
        (("/image", "--key", "/key.pub", "--manifest", "/m"), 0),
        (("/image", "--secret", "/secret", "--manifest", "/n"), 0),
        (("/touched", "--key", "/key.pub", "--manifest", "/m"), 1),
        (("/image", "--key", "/key.pub", "--least", "x"), 2),
    ):
        command = [str(CHROOT), str(root), PYTHON, "-I", "-S", "/hibernaut-verify.pyz", *arguments, "--offset", "2"]
        done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert len((done.stdout + done.stderr).splitlines()) == 1


def test_a_small_machine_verifies(folder: Path) -> None:
    """With 96 MiB of address space, as in an initramfs: a bound for manifests is not the size of a buffer."""
    command = ["image", "--key", "key.pub", "--manifest", "m", "--offset", "2"]
    limited = ["sh", "-c", 'ulimit -v 98304; exec "$@"', "sh", PYTHON, "-I", "-S", "hibernaut-verify.pyz", *command]
    done = subprocess.run(limited, env={}, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name: str) -> None:
    """The shell parses them, and shellcheck finds nothing where it is installed."""
    path = FOLDER / name
    assert path.stat().st_mode & 0o111
    subprocess.run([SCRIPTS[name], "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


def test_hooks_tell_what_they_need_before(tmp_path: Path) -> None:
    """`prereqs`, as initramfs-tools asks each script before it sorts them; no functions of the initramfs are needed."""
    for name, needs in (("hooks", ""), ("scripts/local-top", "cryptroot lvm2 mdadm")):
        command = ["sh", str(FOLDER / f"initramfs-tools/{name}/hibernaut-verify"), "prereqs"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == f"{needs}\n"


def booted(folder: Path, image: str, conf: str = "", parameters: str = "") -> tuple[list[str], str, str]:
    """Run the script of initramfs-tools on a stand-in for an initramfs.

    Returns:
        What was written to the files of /sys/power, in order; the parameters that later scripts read; the messages.
    """
    sys_folder, scripts = folder / "sys", folder / "scripts"
    shutil.rmtree(sys_folder, ignore_errors=True)
    for place in (sys_folder / f"class/block/{image}", sys_folder / "power", scripts):
        place.mkdir(parents=True, exist_ok=True)
    (sys_folder / f"class/block/{image}/dev").write_text("254:16\n")
    for name in ("resume", "resume_offset"):
        (sys_folder / "power" / name).write_text("")
    (scripts / "functions").write_text("")
    (scripts / "local").write_text('local_device_setup() { [ -e "$1" ]; }\n')
    (folder / "verify.conf").write_text(f"DEVICE={folder / image}\nKEY=key.pub\nMANIFEST=m\nOFFSET=2\n{conf}\n")
    (folder / "param.conf").write_text("")
    environment = {
        "PATH": os.environ["PATH"],
        "HIBERNAUT_CONF": str(folder / "verify.conf"),
        "HIBERNAUT_VERIFIER": str(folder / "hibernaut-verify.pyz"),
        "HIBERNAUT_PYTHON": PYTHON,
        "HIBERNAUT_SYS": str(sys_folder),
        "HIBERNAUT_LOG": "/dev/null",
        "HIBERNAUT_PARAMETERS": str(folder / "param.conf"),
        "HIBERNAUT_RESUME": str(FOLDER / "resume"),
        "HIBERNAUT_SCRIPTS": str(scripts),
    }
    script = FOLDER / "initramfs-tools/scripts/local-top/hibernaut-verify"
    done = subprocess.run(
        ["sh", "-c", f"{parameters} . {script}"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    power = [(sys_folder / "power" / name).read_text().strip() for name in ("resume_offset", "resume")]
    return power, (folder / "param.conf").read_text(), done.stdout + done.stderr


def test_the_script_resumes_from_a_whole_image_alone(folder: Path) -> None:
    """The kernel gets the device and the header that were verified; whatever happens, no later script resumes."""
    power, parameters, said = booted(folder, "image")
    assert power == ["2", "254:16"]
    assert "hibernaut: " in said
    assert "whole: a kernel reads" in said
    assert parameters == "resume=\nnoresume=y\n"


@pytest.mark.parametrize(
    ("image", "conf", "words"),
    [
        ("touched", "", "not resuming: "),
        ("swap", "", "not an image"),
        ("image", "KEY=other.pub", "not this key's"),
        ("image", "KEY=", "no key is given"),
        ("image", "OFFSET=0", "a header at block 2"),
        ("image", "LEAST=4", "older: counter 3"),
        ("image", "MANIFEST=", "no manifest in the last"),
        ("image", "DEVICE=absent", ""),
        ("image", "KEY=absent", "No such file"),
    ],
)
def test_the_script_never_resumes_otherwise(folder: Path, image: str, conf: str, words: str) -> None:
    """A touched image, none, another key, no key, another header: nothing is written to /sys/power."""
    power, parameters, said = booted(folder, image, conf)
    assert power == ["", ""]
    assert words in said
    assert parameters == "resume=\nnoresume=y\n"


def test_the_script_takes_an_image_once(folder: Path) -> None:
    """With a kept counter: the kernel gets a whole image, and the same one, put back after its use, never again."""
    counter = folder / "counter"
    counter.write_text("3\n")
    power, _, said = booted(folder, "image", f"COUNTER={counter}")
    assert power == ["2", "254:16"]
    assert counter.read_text() == "4\n"
    assert "from now on, counters below 4 are refused" in said
    power, _, said = booted(folder, "image", f"COUNTER={counter}")
    assert power == ["", ""]
    assert "older: counter 3, and at least 4" in said


def test_the_script_resumes_only_once_the_counter_is_raised(folder: Path) -> None:
    """No file, one without a number, and one that cannot be replaced, although the image is whole: no resume."""
    for name in ("absent/counter", "key.pub"):
        power, _, said = booted(folder, "image", f"COUNTER={folder / name}")
        assert power == ["", ""], said
        assert "not resuming: " in said
    (folder / "full").mkdir()
    (folder / "full/counter").write_text("3\n")
    (folder / "limited").write_text(f'#!/bin/sh\nulimit -f 0\nexec {PYTHON} "$@"\n')  # no file may grow
    (folder / "limited").chmod(0o755)
    power, _, said = booted(folder, "image", f"COUNTER={folder / 'full/counter'}\nPYTHON={folder / 'limited'}")
    assert power == ["", ""], said
    assert "File too large" in said
    assert (folder / "full/counter").read_text() == "3\n"


def test_the_script_obeys_noresume(folder: Path) -> None:
    """Of the kernel's command line: nothing is verified, nothing resumes."""
    power, _, said = booted(folder, "image", parameters="noresume=y;")
    assert (power, said) == (["", ""], "")
