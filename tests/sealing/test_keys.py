# SPDX-License-Identifier: GPL-2.0-or-later
"""Key files: those of OpenSSL, private, never replaced; bad ones end in one line."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hibernaut.errors import FormatError, HibernautError
from hibernaut.sealing.keys import (
    PUBLIC_DER,
    ScryptCost,
    make_keys,
    read_passphrase,
    read_public_key,
    read_signing_key,
)


def openssl(*arguments: object, folder: Path) -> str:
    """Run openssl in a folder and return its output."""
    done = subprocess.run(["openssl", *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_pair_is_private_and_openssl_reads_it(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; the public key that OpenSSL derives is the one beside it."""
    before = os.umask(0)
    try:
        key = make_keys(tmp_path / "key")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_signing_key(tmp_path / "key") == key
    assert read_public_key(tmp_path / "key.pub") == key.public
    derived = openssl("pkey", "-in", "key", "-pubout", folder=tmp_path)
    assert derived.split() == (tmp_path / "key.pub").read_text().split()
    assert key.raw.hex() not in repr(key)


def test_a_pair_of_openssl_is_read(tmp_path: Path) -> None:
    """Sealed by the one, verified by the other."""
    openssl("genpkey", "-algorithm", "ed25519", "-out", "key", folder=tmp_path)
    openssl("pkey", "-in", "key", "-pubout", "-out", "key.pub", folder=tmp_path)
    key = read_signing_key(tmp_path / "key")
    assert key.public == read_public_key(tmp_path / "key.pub")
    assert key.public.accepts(key.seal(b"body", b"", ScryptCost()), b"body", b"", ScryptCost())


@pytest.mark.parametrize("name", ["key", "key.pub"])
def test_no_key_is_replaced(tmp_path: Path, name: str) -> None:
    """Whichever of the two exists: nothing is written, nothing removed."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError):
        make_keys(tmp_path / "key")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(name, "precious")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 keys in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n" * 2, "2 keys in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA=A\n-----END PUBLIC KEY-----\n", "not Base64"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not an Ed25519 public key"),
        (b"x" * 70000, "too long for a key"),
        (
            b"-----BEGIN PUBLIC KEY-----\n%b\n-----END PUBLIC KEY-----" % base64.b64encode(PUBLIC_DER + bytes(32)),
            "prime order",
        ),
    ],
)
def test_bad_public_keys_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """With the file and the next step."""
    (tmp_path / "key.pub").write_bytes(content)
    with pytest.raises(FormatError, match=words) as caught:
        read_public_key(tmp_path / "key.pub")
    assert caught.value.source == str(tmp_path / "key.pub")
    assert caught.value.advice


def test_keys_are_not_mixed_up(tmp_path: Path) -> None:
    """The private key is not taken for a public one, the public one does not sign, another algorithm's is neither."""
    make_keys(tmp_path / "key")
    with pytest.raises(FormatError, match="this is a private key"):
        read_public_key(tmp_path / "key")
    with pytest.raises(FormatError, match="not an Ed25519 private key"):
        read_signing_key(tmp_path / "key.pub")
    openssl("genpkey", "-algorithm", "x25519", "-out", "other", folder=tmp_path)
    openssl("pkey", "-in", "other", "-pubout", "-out", "other.pub", folder=tmp_path)
    with pytest.raises(FormatError, match="not an Ed25519 private key"):
        read_signing_key(tmp_path / "other")
    with pytest.raises(FormatError, match="not an Ed25519 public key"):
        read_public_key(tmp_path / "other.pub")


def test_an_encrypted_key_is_named(tmp_path: Path) -> None:
    """It is not read, and the message says how to decrypt it."""
    make_keys(tmp_path / "key")
    openssl("pkey", "-in", "key", "-aes256", "-passout", "pass:x", "-out", "secret", folder=tmp_path)
    with pytest.raises(FormatError, match=r"encrypted.*openssl pkey"):
        read_signing_key(tmp_path / "secret")


def test_a_passphrase_is_a_line(tmp_path: Path) -> None:
    """The end of the line does not count; an empty one is refused; it is never shown."""
    (tmp_path / "one").write_bytes(b"words and words\n")
    assert read_passphrase(tmp_path / "one").passphrase == b"words and words"
    assert "words" not in repr(read_passphrase(tmp_path / "one"))
    (tmp_path / "none").write_bytes(b"\n")
    with pytest.raises(FormatError, match="no passphrase"):
        read_passphrase(tmp_path / "none")


def test_signing_without_cryptography_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a public key needs nothing; signing names the package."""
    make_keys(tmp_path / "key")
    for name in [name for name in sys.modules if name.startswith("cryptography.hazmat.primitives.asymmetric.ed25519")]:
        monkeypatch.setitem(sys.modules, name, None)
    read_public_key(tmp_path / "key.pub")
    with pytest.raises(HibernautError, match="cryptography is not installed, and signing needs it; try: "):
        read_signing_key(tmp_path / "key")
