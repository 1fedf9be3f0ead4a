# SPDX-License-Identifier: GPL-2.0-or-later
"""`make audit`: what is planted is found, and without a service one line says that nothing was checked."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytest.importorskip("bandit")
pytest.importorskip("pip_audit")
AUDIT = REPOSITORY / "packages" / "audit.py"
BANDIT = [sys.executable, "-m", "bandit", "--quiet", "--configfile", str(REPOSITORY / "pyproject.toml"), "--recursive"]
VULNERABLE = {
    "id": "PYSEC-0000-1",
    "modified": "2026-01-01T00:00:00Z",
    "summary": "planted",
    "affected": [
        {
            "package": {"name": "planted", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
            "versions": ["1.0"],
        }
    ],
}


@contextmanager
def service(status: int = 200, body: bytes | None = None) -> Iterator[str]:
    """Serve OSV's answers, by which planted 1.0 is vulnerable, or one answer to all; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hit = (asked["package"]["name"], asked["version"]) == ("planted", "1.0")
            answer = json.dumps({"vulns": [VULNERABLE]} if hit else {}).encode() if body is None else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def audit(url: str, *locks: Path, required: bool = False) -> subprocess.CompletedProcess[str]:
    """Audit lock files by a service, without a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = {**kept, "HIBERNAUT_AUDIT": "required" if required else ""}
    words = [sys.executable, str(AUDIT), "--service", url, *map(str, locks)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def lock(folder: Path, *packages: str) -> Path:
    """Write a lock file of some packages."""
    path = folder / "lock.txt"
    path.write_text("".join(f"{package} --hash=sha256:{'0' * 64}\n" for package in packages))
    return path


def test_a_vulnerable_package_is_found(tmp_path: Path) -> None:
    """The package, its version, the number and the version that fixes it, and status 1; others pass."""
    with service() as url:
        found = audit(url, lock(tmp_path, "planted==1.0", "other==1.0"))
        assert found.stdout.splitlines()[1:] == ["  planted 1.0: PYSEC-0000-1, fixed in 2.0"]
        assert (found.returncode, found.stderr) == (1, "")
        fine = audit(url, lock(tmp_path, "planted==2.0", "other==1.0"))
        assert (fine.returncode, fine.stderr) == (0, "")
        assert fine.stdout == f"{tmp_path / 'lock.txt'}: 2 packages, 0 known vulnerabilities\n"


def test_the_lock_of_this_project_is_read_whole() -> None:
    """Each lock file can be audited: its packages are asked for, none is left out."""
    locks = sorted((REPOSITORY / "requirements").glob("*.txt"))
    with service() as url:
        done = audit(url, *locks)
    assert (done.returncode, done.stderr) == (0, "")
    counts = {path: int(count) for path, count in re.findall(r"^(\S+): (\d+) packages, 0 known", done.stdout, re.M)}
    assert list(counts) == list(map(str, locks))
    assert counts[str(REPOSITORY / "requirements" / "dev.txt")] > 90


def test_a_lock_that_is_none_fails(tmp_path: Path) -> None:
    """A file that pip-audit refuses is a failure, not a skip."""
    with service() as url:
        (tmp_path / "lock.txt").write_text("planted>=1\n")
        done = audit(url, tmp_path / "lock.txt")
    assert done.returncode == 1
    assert "pip-audit fails with status 1: " in done.stdout


@pytest.mark.parametrize(("status", "body"), [(403, b"{}"), (200, b"<html>"), (200, b"[]")])
def test_a_service_without_an_answer_is_a_skip(tmp_path: Path, status: int, body: bytes) -> None:
    """A proxy that refuses and a page in place of an answer: one line, status 0, or 1 where it is required."""
    with service(status, body) as url:
        done, required = (audit(url, lock(tmp_path, "planted==1.0"), required=value) for value in (False, True))
    assert (done.returncode, required.returncode, done.stderr) == (0, 1, "")
    assert done.stdout == required.stdout
    assert done.stdout.startswith(f"audit of packages skipped: {url} does not answer: ")
    assert done.stdout.count("\n") == 1


def test_a_service_that_is_not_there_is_a_skip(tmp_path: Path) -> None:
    """No connection, and no URL of a service."""
    with service() as url:
        pass
    for other in (url, "file:///dev/null"):
        done = audit(other, lock(tmp_path, "planted==1.0"))
        assert done.returncode == 0
        assert done.stdout.startswith("audit of packages skipped: ")


def test_a_dangerous_call_is_found(tmp_path: Path) -> None:
    """A shell, pickle and an archive that is unpacked unseen are findings by the configuration of this project."""
    program = (
        "import pickle\nimport subprocess\nimport tarfile\n"
        "def run(words, data):\n    subprocess.run(words, shell=True)\n    pickle.loads(data)\n"
        "    tarfile.open(words).extractall('/')\n    subprocess.run(words)\n    yaml.load(words)\n"
    )
    (tmp_path / "planted.py").write_text(program)
    done = subprocess.run([*BANDIT, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 1
    assert {"B602", "B301", "B202", "B603"} <= set(re.findall(r"\bB\d{3}\b", done.stdout))
    (tmp_path / "planted.py").write_text("import subprocess\n")
    assert subprocess.run([*BANDIT, str(tmp_path)], capture_output=True, cwd=REPOSITORY, check=False).returncode == 0


def test_exceptions_have_reasons() -> None:
    """Those at a line name their rule and say why; those in pyproject.toml have a comment each."""
    found = 0
    for path in (*REPOSITORY.glob("src/**/*.py"), *REPOSITORY.glob("packages/**/*.py")):
        for line in path.read_text().splitlines():
            if "# nosec" in line:
                assert re.search(r"# nosec B\d{3} # \w+\W+\w+", line), (path, line)
                found += 1
    assert found
    text = (REPOSITORY / "pyproject.toml").read_text()
    for rule in tomllib.loads(text)["tool"]["bandit"]["skips"]:
        assert re.search(rf'^    "{rule}", # \w.{{20}}', text, re.M), rule


def narrows(test: ast.expr) -> bool:
    """Return whether an assertion only narrows a type: `is not None`, `isinstance`, `not isinstance`."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test = test.operand
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name):
        return test.func.id == "isinstance"
    return isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)


def test_assertions_only_narrow_types() -> None:
    """An assertion of anything else would vanish with `python -O`; a check of an input must not."""
    assert not narrows(ast.parse("size > 0", mode="eval").body)
    for path in (*REPOSITORY.glob("src/**/*.py"), *REPOSITORY.glob("packages/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                assert narrows(node.test), (path, node.lineno)
