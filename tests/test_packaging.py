# SPDX-License-Identifier: GPL-2.0-or-later
"""Files for a package index and a forge: metadata, dependencies and their lock, licence lines, changelog, workflows."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hibernaut
from tests.cli.run import hibernaut as command
from tests.conftest import Golden

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
GROUPS: dict[str, list[Any]] = PROJECT["dependency-groups"]
PYTHONS = [
    found[1]
    for text in PROJECT["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text))
]
LOCKS = sorted((REPOSITORY / "requirements").glob("*.txt"))
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").iterdir())
FORMS = sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").iterdir())
TEMPLATES = [*FORMS, REPOSITORY / ".github/PULL_REQUEST_TEMPLATE.md"]
CODE = {".c", ".cff", ".css", ".h", ".js", ".pml", ".py", ".sh", ".toml", ".yaml", ".yml"}
MAKE = re.compile(r"(?:`|^ *(?:- run: |entry: )?)make ([a-z][a-z -]*?)(?= *(?:`|$|#|[A-Z_]+=))", re.MULTILINE)
"""Targets in a document, a workflow or a hook: in backquotes or a line of their own, before comment or variables."""


def named(texts: list[str]) -> dict[str, Requirement]:
    """Requirements by normalized name."""
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


def plain(group: str) -> list[str]:
    """The requirements that a group names itself."""
    return [entry for entry in GROUPS[group] if isinstance(entry, str)]


def locked(path: Path) -> Iterator[tuple[Requirement, list[str]]]:
    """The entries of a lock, each with its digests."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        requirement, *digests = entry.split(" --hash=")
        yield Requirement(requirement.strip()), [digest.strip() for digest in digests]


def environment(python: str) -> dict[str, str]:
    """The markers' values for the lowest patch release of a Python on the system that hibernaut runs on."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
        "extra": "",
    }


def sources() -> Iterator[Path]:
    """Files that people write as code; neither documents nor data."""
    skipped = {"build", "dist", "__pycache__"}
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [
            name for name in folders if name not in skipped and (not name.startswith(".") or name in {".ci", ".github"})
        ]
        for name in files:
            path = Path(folder) / name
            if path.suffix in CODE or name in {"Kbuild", "Makefile"} or path == REPOSITORY / ".ci/run":
                yield path


def test_every_source_file_names_its_licence() -> None:
    """The SPDX line of each file, within its first two lines, is that of the package."""
    line = f"SPDX-License-Identifier: {PROJECT['project']['license']}"
    found = list(sources())
    assert {".c", ".cff", ".py", ".toml", ".yaml", ".yml"} <= {path.suffix for path in found}
    without = [path for path in found if not any(line in head for head in path.read_text().splitlines()[:2])]
    assert [str(path.relative_to(REPOSITORY)) for path in without if path.read_text().strip()] == []


def test_one_version() -> None:
    """The package, the citation and the changelog's first section have one version."""
    version = PROJECT["project"]["version"]
    assert hibernaut.__version__ == version
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
    assert changelog()[0][0] == version


def changelog() -> list[tuple[str, str, list[str]]]:
    """(version, state, lines) of each section."""
    title, _, *rest = (REPOSITORY / "CHANGELOG.md").read_text().splitlines()
    assert title == "# Changelog"
    found: list[tuple[str, str, list[str]]] = []
    for line in rest:
        if line.startswith("## "):
            heading = re.fullmatch(r"## (\d+\.\d+\.\d+) \(([-a-z\d]+)\)", line)
            assert heading, line
            found.append((heading[1], heading[2], []))
        else:
            found[-1][2].append(line)
    return found


def test_changelog_follows_its_rule() -> None:
    """One section a version, newest first, of list items; a date, or "unreleased" on the first one alone."""
    sections = changelog()
    versions = [Version(version) for version, _, _ in sections]
    assert versions == sorted(set(versions), reverse=True)
    for place, (version, state, lines) in enumerate(sections):
        if state != "unreleased" or place > 0:
            assert datetime.date.fromisoformat(state), version
        items = [line for line in lines if line]
        assert items, version
        assert [line for line in items if not line.startswith("- ")] == []


def test_pythons_are_named_alike() -> None:
    """The classifiers, the lowest version, the linters' target and the workflow's matrix name the same Pythons."""
    assert PYTHONS == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    assert PROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert f"--python-version {PYTHONS[0]} " in (REPOSITORY / "Makefile").read_text()


def test_group_dev_is_every_group_with_wheels() -> None:
    """`dev` includes every other group but `lzo`, which has to be compiled, and `fuzz`, which lacks some wheels."""
    included = {entry["include-group"] for entry in GROUPS["dev"]}
    assert included == set(GROUPS) - {"dev", "lzo", "fuzz"}
    assert plain("dev") == []


def test_groups_repeat_dependencies_and_extras_word_for_word() -> None:
    """A group cannot include an extra, so it names its requirements again: with the same versions, all of them."""
    published = named(PROJECT["project"]["dependencies"]) | named([text for extra in EXTRAS.values() for text in extra])
    developed = named([text for group in GROUPS for text in plain(group)])
    for name in published.keys() & developed.keys():
        assert published[name] == developed[name]
    assert {name for extra in EXTRAS.values() for name in named(extra)} <= developed.keys()


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_every_dependency(python: str) -> None:
    """For each Python, each requirement of the package, its extras and the groups is locked, at a version it admits."""
    of_python = [
        requirement
        for path in LOCKS
        if path.name != "bundle.txt"  # a part of dev.txt, see test_bundle.py
        for requirement, _ in locked(path)
        if requirement.marker is None or requirement.marker.evaluate(environment(python))
    ]
    versions = {canonicalize_name(found.name): next(iter(found.specifier)).version for found in of_python}
    assert len(versions) == len(of_python)
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(text for extra in EXTRAS.values() for text in extra),
        *(text for group in GROUPS for text in plain(group)),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate(environment(python)):
            continue
        version = versions.get(canonicalize_name(requirement.name), "none")
        assert version != "none", f"{requirement} is not locked: make lock"
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}: make lock"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_lock_is_exact_and_names_no_host(path: Path) -> None:
    """Each entry has one version and SHA-256 digests of its files; where these come from is left to the installer."""
    assert "make lock" in path.read_text()
    assert "//" not in path.read_text()
    entries = list(locked(path))
    assert entries
    for requirement, digests in entries:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="]
        assert digests
        assert all(re.fullmatch(r"sha256:[\da-f]{64}", digest) for digest in digests), requirement


@pytest.mark.skipif("HIBERNAUT_WHEEL" not in os.environ, reason="the tree is tested: `make test-wheel` tests the wheel")
def test_wheel_is_tested_and_whole() -> None:
    """The package comes from the wheel, which holds every file of the tree and no other."""
    installed, tree = Path(hibernaut.__file__).parent, REPOSITORY / "src/hibernaut"
    assert installed.is_relative_to(sys.prefix)

    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert files(installed) == files(tree)
    for path in files(tree):
        assert (installed / path).read_bytes() == (tree / path).read_bytes(), path


SCHEMAS = [
    *((path, "vendor.github-workflows") for path in WORKFLOWS),
    *((path, "custom.github-workflows-require-timeout") for path in WORKFLOWS),
    *((path, "vendor.github-issue-forms") for path in FORMS),
    (REPOSITORY / ".github/dependabot.yml", "vendor.dependabot"),
    (REPOSITORY / "CITATION.cff", "vendor.citation-file-format"),
]


@pytest.mark.parametrize(("path", "schema"), SCHEMAS, ids=lambda value: str(getattr(value, "name", value)))
def test_forge_files_follow_their_schemas(path: Path, schema: str) -> None:
    """The schemas that the forge and the citation format publish, as check-jsonschema ships them."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_get_no_rights(path: Path) -> None:
    """A workflow reads the repository and nothing else, leaves no token behind, and names each action's version."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "permissions" not in job, name
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name
            assert "github.event" not in step.get("run", ""), "text of an event is not code"


def test_make_targets_exist() -> None:
    """Every `make TARGET` of documents, workflows, templates and hooks is a target, and the phony ones are declared."""
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets
    documents = [
        *REPOSITORY.glob("*.md"),
        *TEMPLATES,
        *WORKFLOWS,
        REPOSITORY / ".ci/run",
        REPOSITORY / ".pre-commit-config.yaml",
    ]
    asked = {
        target: path.name
        for path in documents
        for targets_together in MAKE.findall(path.read_text())
        for target in targets_together.split()
    }
    assert {"demo", "test", "test-wheel", "lint", "types", "docs", "lock", "dist"} <= asked.keys()
    assert {target: name for target, name in asked.items() if target not in targets} == {}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_protect_memory(path: Path) -> None:
    """A template that asks for output says that images, dumps and core files are never attached."""
    text = " ".join(path.read_text().split())
    if "`hibernaut " in text:
        assert "ever attach an image, a dump or a core file" in text


def test_templates_name_fields_of_inspect(golden: Golden) -> None:
    """The form asks for `inspect --json`, and the keys that it says to redact are in that document."""
    text = (REPOSITORY / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    assert "hibernaut inspect --json IMAGE" in text
    document = json.loads(command("inspect", "--json", str(golden("swap-6.1-lzo.img"))).out)
    keys = set(re.findall(r"`([a-z]\w*)`", text))
    assert {"cr3", "jump_address", "jump_address_phys", "e820_checksum", "hw_sig"} <= keys
    assert keys - {"map"} <= set(document)


def test_hooks_are_local() -> None:
    """A commit runs the project's own tools, of the versions that are locked, and fetches nothing."""
    path = REPOSITORY / ".pre-commit-config.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load(path.read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert {hook["language"] for repository in config["repos"] for hook in repository["hooks"]} == {"system"}
