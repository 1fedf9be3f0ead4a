# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a service for known vulnerabilities of the packages in lock files: `make audit`.

pip-audit asks, package by package. Without an answer of the service nothing is checked: one line says so, and the exit
status is 0, or 1 with HIBERNAUT_AUDIT=required. A finding ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["EXCEPTIONS", "main"]

SERVICE = "https://api.osv.dev/v1/query"
"""OSV of the Open Source Vulnerabilities project, which has PyPI's advisories (https://google.github.io/osv.dev/api)."""
PROBE_SECONDS = 20
EXCEPTIONS: dict[str, str] = {}
"""Vulnerabilities that are accepted, by their number in the service, each with its reason."""


def main() -> int:
    """Audit lock files and print a line for each. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="audit.py", description=__doc__)
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK", help="requirements with digests")
    parser.add_argument("--service", default=SERVICE, metavar="URL", help=f"of an OSV service (default: {SERVICE})")
    asked = parser.parse_args()
    problem = _no_answer(asked.service)
    if problem is not None:
        print(f"audit of packages skipped: {asked.service} does not answer: {problem}")  # noqa: T201
        return 1 if os.environ.get("HIBERNAUT_AUDIT") == "required" else 0
    return max([_audit(lock, asked.service) for lock in asked.locks])


def _no_answer(service: str) -> str | None:
    """Return why a service does not answer a query of OSV, None if it does."""
    query = json.dumps({"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "25.1"}).encode()
    request = urllib.request.Request(service, query, {"Content-Type": "application/json"})
    if request.type not in ("http", "https"):
        return f"expected a URL of http or https, not {request.type}"
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as reply:  # nosec B310 # http or https, see above
            answer = json.load(reply)
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return None if isinstance(answer, dict) else "not an answer of OSV"


def _audit(lock: Path, service: str) -> int:
    """Print what is known about the packages of a lock file; returns the exit status."""
    words = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    words += ["--vulnerability-service", "osv", "--osv-url", service, "--format", "json", "--progress-spinner", "off"]
    for number in EXCEPTIONS:
        words += ["--ignore-vuln", number]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # nosec B603 # this interpreter
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"{lock}: pip-audit fails with status {done.returncode}: {done.stderr.strip()[-600:]}")  # noqa: T201
        return 1
    skipped = [f"{one['name']}: {one['skip_reason']}" for one in packages if "skip_reason" in one]
    found = [(one, known) for one in packages for known in one.get("vulns", ())]
    print(f"{lock}: {len(packages)} packages, {len(found)} known vulnerabilities")  # noqa: T201
    for one, known in found:
        fixed = ", ".join(known["fix_versions"]) or "no version"
        print(f"  {one['name']} {one['version']}: {known['id']}, fixed in {fixed}")  # noqa: T201
    for line in skipped:
        print(f"  not checked: {line}")  # noqa: T201
    return 1 if found or skipped or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
