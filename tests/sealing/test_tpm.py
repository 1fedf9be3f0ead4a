# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys that a TPM has sealed, and its counter, with TPMs in software: the same machine in the same state has them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.sealing import tpm as tpm_module
from hibernaut.sealing.keys import read_signing_key
from hibernaut.sealing.tpm import TpmBlob, TpmCounter, pack_blob, seal_by_tpm, unpack_blob, unseal_by_tpm
from tests.cli.run import hibernaut, refused
from tests.sealing.sealed import LAYOUT, PAGES
from tests.sealing.software_tpm import software_tpm, tpm2
from tests.sealing.verifier_file import verifier_file
from tests.swsusp import naive

PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
DEVICE = naive.build(PAGES, LAYOUT)
INDEX = "0x1500010"
SECRET = bytes(range(32))
OTHER_STATE = ("pcrextend", f"16:sha256={'01' * 32}")


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new TPM, which tpm2-tools use."""
    with software_tpm() as tcti:
        monkeypatch.setenv("TPM2TOOLS_TCTI", tcti)
        yield tcti


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").write_bytes(DEVICE)
    return tmp_path


def seal(*options: object) -> tuple[str, ...]:
    """Return the command that seals the image."""
    return tuple(map(str, ("seal", "image", "--offset", 2, "--key", "key", "--manifest", "m", *options)))


def verify(*options: object) -> tuple[str, ...]:
    """Return the command that verifies it."""
    return tuple(map(str, ("verify", "image", "--offset", 2, "--key", "key.pub", "--manifest", "m", *options)))


def define_counter() -> None:
    """Make the index as the advice of a refusal says."""
    with pytest.raises(HibernautError) as caught:
        TpmCounter(int(INDEX, 16)).value()
    advice = (caught.value.advice or "").removeprefix("run `tpm2_").removesuffix("`")
    tpm2(*(word.strip("'") for word in advice.split()))


@pytest.mark.usefixtures("tpm")
def test_a_key_in_a_tpm_seals(folder: Path) -> None:
    """The public key verifies what the sealed one signs; the private key itself is in no file."""
    made = hibernaut("seal-key", "key", "--tpm", "--pcrs", "sha256:7,16")
    assert made.out == (
        "key: private key, sealed by this machine's TPM and sha256:7,16, to seal; key.pub: public key, to verify\n"
    )
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    raw = read_signing_key("key").raw
    for path in folder.iterdir():
        assert raw not in path.read_bytes()
    assert hibernaut(*seal()).status == 0
    assert hibernaut(*verify()).status == 0
    assert hibernaut("seal-key", "other", "--tpm", "--json").document["pcrs"] is None
    assert not tpm2("getcap", "handles-transient")


@pytest.mark.usefixtures("tpm", "folder")
def test_another_state_of_the_machine_gets_no_key() -> None:
    """A PCR that was extended since: one line, and no manifest; a key without PCRs is released as before."""
    hibernaut("seal-key", "free", "--tpm")
    hibernaut("seal-key", "key", "--tpm", "--pcrs", "sha256:7,16")
    assert hibernaut(*seal()).status == 0
    Path("m").unlink()
    tpm2(*OTHER_STATE)
    line = refused(*seal())
    assert "the TPM does not release the key: its sha256:7,16 differ" in line
    assert not Path("m").exists()
    assert read_signing_key("free").raw
    assert not tpm2("getcap", "handles-loaded-session")


@pytest.mark.usefixtures("folder")
def test_another_tpm_gets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the key on another machine, and on the same one after its TPM was cleared."""
    with software_tpm() as one, software_tpm() as other:
        monkeypatch.setenv("TPM2TOOLS_TCTI", one)
        hibernaut("seal-key", "key", "--tpm")
        assert hibernaut(*seal()).status == 0
        monkeypatch.setenv("TPM2TOOLS_TCTI", other)
        assert "this TPM has not sealed the key" in refused(*seal())
        monkeypatch.setenv("TPM2TOOLS_TCTI", one)
        tpm2("clear")
        assert "this TPM has not sealed the key" in refused(*seal())


@pytest.mark.usefixtures("tpm")
def test_secrets_go_through_pipes_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No argument of a command, which any user's ps shows, has the secret; files are in memory, without a name."""
    seen: list[list[str]] = []
    run = subprocess.run

    def noted(words: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        seen.append(words)
        return run(words, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "run", noted)
    monkeypatch.chdir(tmp_path)
    assert unseal_by_tpm(seal_by_tpm(SECRET, "sha256:16")) == SECRET
    assert len(seen) > 6
    for words in seen:
        assert not any(text in " ".join(words).lower() for text in (SECRET.hex(), SECRET[16:].hex()))
        assert all(word.startswith("/dev/fd/") for flag, word in pairwise(words)
                   if flag in ("-u", "-r", "-c", "-L") or (flag == "-C" and word != "o"))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tpm", "folder")
def test_the_counter_of_a_tpm_refuses_older_images() -> None:
    """Each seal counts; yesterday's manifest is older; with --once today's is as well, the second time."""
    hibernaut("seal-key", "key")
    define_counter()
    kept = ("--counter-tpm", INDEX)
    first = hibernaut(*seal(*kept), "--json").document["counter"]
    Path("m").rename("old")
    second = hibernaut(*seal(*kept), "--json").document["counter"]
    assert second == first + 1 == int.from_bytes(nvread(), "big")
    assert hibernaut(*verify(*kept)).status == 0
    old = hibernaut("verify", "image", "--offset", 2, "--key", "key.pub", "--manifest", "old", *kept)
    assert old.out == f"image: older: counter {first}, and at least {second} is asked for\n"
    assert hibernaut(*verify(*kept, "--once")).status == 0
    assert hibernaut(*verify(*kept, "--once")).status == 1
    assert int.from_bytes(nvread(), "big") == second + 1


def nvread() -> bytes:
    """Return the content of the index."""
    return subprocess.run(["tpm2_nvread", INDEX], capture_output=True, check=True).stdout


@pytest.mark.usefixtures("tpm", "folder")
def test_an_index_that_was_made_anew_accepts_nothing_older() -> None:
    """The TPM begins a new counter above all that it ever had; an index that can be written is not a counter."""
    hibernaut("seal-key", "key")
    define_counter()
    kept = ("--counter-tpm", INDEX)
    for _ in range(3):
        assert hibernaut(*seal(*kept)).status == 0
    Path("m").rename("old")
    tpm2("nvundefine", "-C", "o", INDEX)
    assert "the TPM has no index 0x1500010" in refused(*verify(*kept, "--manifest", "old"))
    tpm2("nvdefine", "-C", "o", "-s", "8", "-a", "authread|authwrite|ownerread|ownerwrite|no_da", INDEX)
    subprocess.run(["tpm2_nvwrite", INDEX, "-i", "-"], input=bytes(8), check=True)
    assert "is not a counter" in refused(*verify(*kept, "--manifest", "old"))
    tpm2("nvundefine", "-C", "o", INDEX)
    define_counter()
    assert "has not counted yet" in refused(*verify(*kept, "--manifest", "old"))
    tpm2("nvincrement", INDEX)
    assert hibernaut("verify", "image", "--offset", 2, "--key", "key.pub", "--manifest", "old", *kept).status == 1


@pytest.mark.usefixtures("tpm", "folder")
def test_a_seal_of_another_counter_is_refused() -> None:
    """A number above the TPM's is none that it gave: an error, and the TPM does not count up to it."""
    hibernaut("seal-key", "key")
    define_counter()
    hibernaut(*seal("--counter-tpm", INDEX))
    before = nvread()
    hibernaut(*seal("--counter", 1000))
    assert "it counts for other seals" in refused(*verify("--counter-tpm", INDEX, "--once"))
    assert nvread() == before


@pytest.mark.usefixtures("folder")
def test_the_verifier_alone_reads_the_counter(tpm: str) -> None:
    """With the standard library and tpm2-tools: whole once, then older, as `verify` says."""
    hibernaut("seal-key", "key")
    define_counter()
    hibernaut(*seal("--counter-tpm", INDEX))
    verifier_file(Path.cwd())
    words = [PYTHON, "-I", "-S", "hibernaut-verify.pyz", *verify("--counter-tpm", INDEX, "--once")[1:]]
    found = [
        subprocess.run(words, env={"TPM2TOOLS_TCTI": tpm}, capture_output=True, text=True, check=False).returncode
        for _ in range(2)
    ]
    assert found == [0, 1]


@pytest.mark.usefixtures("folder")
def test_without_a_tpm_or_its_tools_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that is missing, or the device; no file is left; PCRs of no TPM, and PCRs that are none."""
    hibernaut("seal-key", "key")
    assert "give --tpm as well" in refused("seal-key", "new", "--pcrs", "sha256:7")
    monkeypatch.setattr(tpm_module, "FOLDERS", "/nowhere")
    with monkeypatch.context() as bare:
        bare.setenv("PATH", "/nowhere")
        for command in (("seal-key", "new", "--tpm"), seal("--counter-tpm", INDEX)):
            assert refused(*command).endswith("is not installed; install the package tpm2-tools")
    assert "names no PCRs" in refused("seal-key", "new", "--tpm", "--pcrs", "7")
    assert not Path("new").exists()
    assert not Path("new.pub").exists()


@pytest.mark.usefixtures("tpm", "folder")
def test_a_tpm_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """tpm2-tools say where they looked; the line says what to set."""
    monkeypatch.setenv("TPM2TOOLS_TCTI", "swtpm:path=/nowhere")
    line = refused("seal-key", "new", "--tpm")
    assert "no TPM answers" in line
    assert "TPM2TOOLS_TCTI" in line


def test_a_tool_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit, with one line."""
    (tmp_path / "tpm2_nvreadpublic").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "tpm2_nvreadpublic").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(tpm_module, "TOOL_SECONDS", 0.2)
    with pytest.raises(HibernautError, match="did not answer"):
        TpmCounter(int(INDEX, 16)).value()


def test_blobs_are_read_as_written_and_damaged_ones_refused() -> None:
    """Every cut, a longer file, PCRs that could be an option of a command, an empty part."""
    blob = TpmBlob(b"public", b"private", "sha256:0,7")
    data = pack_blob(blob)
    assert unpack_blob(data, "key") == blob
    assert unpack_blob(pack_blob(TpmBlob(b"a", b"b")), "key").pcrs == ""
    for one in (
        *(data[:size] for size in range(len(data))),
        data + b"\0",
        pack_blob(TpmBlob(b"a", b"b", "--help")),
        pack_blob(TpmBlob(b"", b"b")),
        pack_blob(TpmBlob(b"a", bytes(5000))),
    ):
        with pytest.raises(FormatError, match="damaged"):
            unpack_blob(one, "key")
