# SPDX-License-Identifier: GPL-2.0-or-later
"""TPMs in software (swtpm), as tpm2-tools see them. Tests skip without the packages; a switch makes that a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SWITCH = "HIBERNAUT_TPM"
"""required: fail, rather than skip, where swtpm or tpm2-tools are missing."""
START_SECONDS = 20


def need_swtpm() -> None:
    """Skip, or fail where it is required, unless swtpm, tpm2-tools and the library between them are installed."""
    missing = [name for name in ("swtpm", "tpm2_nvread") if shutil.which(name) is None]
    if missing:
        reason = f"{', '.join(missing)} missing: apt-get install swtpm tpm2-tools libtss2-tcti-swtpm0"
        if os.environ.get(SWITCH) == "required":
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def software_tpm() -> Iterator[str]:
    """Run a new TPM and yield the value of TPM2TOOLS_TCTI for it."""
    need_swtpm()
    with tempfile.TemporaryDirectory(prefix="tpm-") as name:  # a socket's path has 108 bytes at most
        folder = Path(name)
        sockets = ["--server", f"type=unixio,path={folder}/s", "--ctrl", f"type=unixio,path={folder}/s.ctrl"]
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "startup-clear", *sockets]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + START_SECONDS
            while not (folder / "s").exists() and time.monotonic() < end:
                time.sleep(0.02)
            yield f"swtpm:path={folder}/s"
        finally:
            process.kill()
            process.wait()


def tpm2(*words: str) -> str:
    """Run a command of tpm2-tools, which must succeed, and return what it printed."""
    done = subprocess.run([f"tpm2_{words[0]}", *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
