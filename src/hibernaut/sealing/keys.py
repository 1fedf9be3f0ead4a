# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of seals: a pair of Ed25519 keys, or a passphrase. Checking one needs the standard library alone.

Key files are those of OpenSSL: PEM with the DER of RFC 8410 in it, `PRIVATE KEY` (PKCS #8, not encrypted) and
`PUBLIC KEY`. `openssl genpkey -algorithm ed25519` makes the same. A private key that a TPM has sealed is PEM with a
label of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from hibernaut.errors import FormatError, HibernautError, how_to_install
from hibernaut.sealing.ed25519 import SIGNATURE_BYTES, is_public_key, is_signature
from hibernaut.sealing.tpm import pack_blob, seal_by_tpm, unpack_blob, unseal_by_tpm

__all__ = [
    "SEAL_BYTES",
    "SEAL_WORDS",
    "CheckingKey",
    "PassphraseKey",
    "PublicKey",
    "ScryptCost",
    "SealKind",
    "SealingKey",
    "SigningKey",
    "make_keys",
    "read_passphrase",
    "read_public_key",
    "read_signing_key",
]


class SealKind(IntEnum):
    """The kinds of seals, by the number that a manifest has."""

    ED25519 = 1
    PASSPHRASE = 2


SEAL_BYTES: Mapping[SealKind, int] = {SealKind.ED25519: SIGNATURE_BYTES, SealKind.PASSPHRASE: 32}
"""Length of each kind of seal."""
SEAL_WORDS: Mapping[SealKind, str] = {SealKind.ED25519: "Ed25519", SealKind.PASSPHRASE: "passphrase"}
KEY_FILE_BYTES = 1 << 16
"""Bound for the file of a key or a passphrase."""
PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s+([A-Za-z0-9+/=\s]+)-----END \1-----")
PRIVATE_DER = bytes.fromhex("302e020100300506032b657004220420")
"""DER before the 32 bytes of a private key (RFC 8410, section 7)."""
PUBLIC_DER = bytes.fromhex("302a300506032b6570032100")
"""DER before the 32 bytes of a public key (RFC 8410, section 4)."""
TPM_LABEL = b"HIBERNAUT TPM KEY"
"""Label of a private key that a TPM has sealed, see `tpm.pack_blob`."""
KEY_BYTES = 32
SALT_BYTES = 16
GET_KEYS = "give one that `hibernaut seal-key` makes"


@dataclass(frozen=True)
class ScryptCost:
    """The cost of scrypt (RFC 7914).

    Attributes:
        log2_n: binary logarithm of N.
        r: block size.
        p: parallelization.
    """

    log2_n: int = 16
    r: int = 8
    p: int = 1

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes: 64 MiB by default."""
        return 128 * self.r * ((1 << self.log2_n) + self.p)

    @property
    def is_accepted(self) -> bool:
        """Whether it is neither too cheap nor takes more than 256 MiB: a manifest that is read states it."""
        return 14 <= self.log2_n <= 18 and self.r == 8 and self.p == 1


class CheckingKey(Protocol):
    """A key that tells whether a seal is its own."""

    @property
    def kind(self) -> SealKind:
        """Kind of its seals."""

    def accepts(self, seal: bytes, body: bytes, salt: bytes, cost: ScryptCost) -> bool:
        """Return whether a seal on a manifest is this key's.

        Args:
            seal: the seal.
            body: all bytes of the manifest before it.
            salt: salt that the manifest states.
            cost: cost that the manifest states, which is accepted.
        """


class SealingKey(CheckingKey, Protocol):
    """A key that makes seals."""

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the public key; zeroes for a passphrase. 32 bytes."""

    def seal(self, body: bytes, salt: bytes, cost: ScryptCost) -> bytes:
        """Return the seal on the bytes of a manifest. Arguments as for `accepts`."""


@dataclass(frozen=True)
class PublicKey:
    """The public key of a pair.

    Attributes:
        raw: 32 bytes.
    """

    raw: bytes

    @property
    def kind(self) -> SealKind:
        """See `CheckingKey`."""
        return SealKind.ED25519

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the key."""
        return hashlib.sha256(self.raw).digest()

    def accepts(self, seal: bytes, body: bytes, salt: bytes, cost: ScryptCost) -> bool:
        """See `CheckingKey`."""
        del salt, cost
        return is_signature(seal, body, self.raw)


@dataclass(frozen=True)
class PassphraseKey:
    """A passphrase: whatever checks a seal can make one.

    Attributes:
        passphrase: its bytes, not empty.
    """

    passphrase: bytes = field(repr=False)

    @property
    def kind(self) -> SealKind:
        """See `CheckingKey`."""
        return SealKind.PASSPHRASE

    @property
    def key_id(self) -> bytes:
        """See `SealingKey`."""
        return bytes(32)

    def seal(self, body: bytes, salt: bytes, cost: ScryptCost) -> bytes:
        """See `SealingKey`."""
        key = hashlib.scrypt(
            self.passphrase,
            salt=salt,
            n=1 << cost.log2_n,
            r=cost.r,
            p=cost.p,
            maxmem=2 * cost.memory_bytes,
            dklen=32,
        )
        return hmac.digest(key, body, "sha256")

    def accepts(self, seal: bytes, body: bytes, salt: bytes, cost: ScryptCost) -> bool:
        """See `CheckingKey`."""
        return hmac.compare_digest(self.seal(body, salt, cost), seal)


@dataclass(frozen=True)
class SigningKey:
    """The private key of a pair, with its public key.

    Attributes:
        raw: 32 bytes.
        public: its public key.
    """

    raw: bytes = field(repr=False)
    public: PublicKey

    @property
    def kind(self) -> SealKind:
        """See `CheckingKey`."""
        return SealKind.ED25519

    @property
    def key_id(self) -> bytes:
        """See `SealingKey`."""
        return self.public.key_id

    def accepts(self, seal: bytes, body: bytes, salt: bytes, cost: ScryptCost) -> bool:
        """See `CheckingKey`."""
        return self.public.accepts(seal, body, salt, cost)

    def seal(self, body: bytes, salt: bytes, cost: ScryptCost) -> bytes:
        """See `SealingKey`."""
        del salt, cost
        return _private_key(self.raw).sign(body)


class _PrivateKey(Protocol):
    def sign(self, data: bytes, /) -> bytes: ...


def _private_key(raw: bytes) -> _PrivateKey:
    """Return the key of the package cryptography. Raises HibernautError if it is not installed."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        raise HibernautError(
            "the Python package cryptography is not installed, and signing needs it",
            advice=f"try: {how_to_install('cryptography')}",
        ) from None
    return Ed25519PrivateKey.from_private_bytes(raw)


def _public_bytes(raw: bytes) -> bytes:
    """Return the public key of a private one. Raises HibernautError if the package cryptography is missing."""
    _private_key(raw)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()


def read_public_key(path: str | os.PathLike[str]) -> PublicKey:
    """Return the public key in a PEM file.

    Raises:
        FormatError: the file has no Ed25519 public key, or one that no private key has.
        OSError: it cannot be read.
    """
    kind, der = _pem(path)
    if kind == b"PRIVATE KEY":
        raise FormatError(
            "this is a private key", source=os.fspath(path), expected="a public key", advice="give its .pub file"
        )
    if kind != b"PUBLIC KEY" or not der.startswith(PUBLIC_DER) or len(der) != len(PUBLIC_DER) + 32:
        raise FormatError("not an Ed25519 public key in PEM", source=os.fspath(path), advice=GET_KEYS)
    raw = der[len(PUBLIC_DER) :]
    if not is_public_key(raw):
        raise FormatError(
            "the public key is not a point of the curve's prime order: no private key has it",
            source=os.fspath(path),
            advice=GET_KEYS,
        )
    return PublicKey(raw)


def read_signing_key(path: str | os.PathLike[str]) -> SigningKey:
    """Return the private key in a PEM file, released by the TPM if one has sealed it.

    Raises:
        FormatError: the file has no Ed25519 private key, or an encrypted one.
        HibernautError: the package cryptography is not installed, or the TPM does not release the key.
        OSError: it cannot be read.
    """
    kind, der = _pem(path)
    if kind == TPM_LABEL:
        raw = unseal_by_tpm(unpack_blob(der, os.fspath(path)))
        if len(raw) != KEY_BYTES:
            raise FormatError(
                f"the TPM has sealed {len(raw)} bytes",
                source=os.fspath(path),
                expected=f"the {KEY_BYTES} of an Ed25519 key",
                advice=GET_KEYS,
            )
        return SigningKey(raw, PublicKey(_public_bytes(raw)))
    if kind == b"ENCRYPTED PRIVATE KEY":
        raise FormatError(
            "the private key is encrypted, which is not read",
            source=os.fspath(path),
            advice="convert it with `openssl pkey`",
        )
    if kind != b"PRIVATE KEY" or not der.startswith(PRIVATE_DER) or len(der) != len(PRIVATE_DER) + 32:
        raise FormatError("not an Ed25519 private key in PEM", source=os.fspath(path), advice=GET_KEYS)
    raw = der[len(PRIVATE_DER) :]
    return SigningKey(raw, PublicKey(_public_bytes(raw)))


def read_passphrase(path: str | os.PathLike[str]) -> PassphraseKey:
    """Return the passphrase in a file: all its bytes but the end of its last line.

    Raises:
        FormatError: it is empty, or too long for one.
        OSError: it cannot be read.
    """
    found = _bounded(path).removesuffix(b"\n")
    if not found:
        raise FormatError("the file has no passphrase", source=os.fspath(path), advice="write one into it")
    return PassphraseKey(found)


def make_keys(path: str | os.PathLike[str], *, tpm: bool = False, pcrs: str = "") -> SigningKey:
    """Make a pair: the private key in a file of mode 0600, the public one in the same name with .pub.

    Each file appears whole, or not at all, and the public one first: at any instant a private key has its public one.
    Both last once they are returned.

    Args:
        path: file for the private key.
        tpm: whether the machine's TPM seals the private key: the file is of use on this machine alone.
        pcrs: registers of the TPM without whose present values it does not release the key, as in sha256:0,7.

    Raises:
        FileExistsError: one of the files exists; neither is changed.
        HibernautError: the package cryptography is not installed, or the TPM refuses.
        OSError: as the system reports it; no file is left.
    """
    from hibernaut.volumes.output import remove_file, replacing, write_all  # which a verifier does without

    private = Path(path)
    public = private.with_name(f"{private.name}.pub")
    raw = os.urandom(32)
    key = SigningKey(raw, PublicKey(_public_bytes(raw)))
    secret = (
        _pem_text(TPM_LABEL, pack_blob(seal_by_tpm(raw, pcrs))) if tpm else _pem_text(b"PRIVATE KEY", PRIVATE_DER + raw)
    )
    files = {
        public: (_pem_text(b"PUBLIC KEY", PUBLIC_DER + key.public.raw), 0o644),
        private: (secret, 0o600),
    }
    try:
        for file, (text, mode) in files.items():
            with replacing(file, public=file == public, new=True) as fd:
                with suppress(PermissionError):  # a file system without modes
                    os.fchmod(fd, os.fstat(fd).st_mode & mode)
                write_all(fd, memoryview(text), 0)
    except BaseException:
        for file, (text, _) in files.items():
            with suppress(OSError):
                if file.read_bytes() == text:  # ours, not one that was there
                    remove_file(file)
        raise
    return key


def _pem(path: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """Return the label and the content of the one PEM block of a file. Raises FormatError, OSError."""
    blocks = PEM.findall(_bounded(path))
    if len(blocks) != 1:
        raise FormatError(
            f"the file has {len(blocks)} keys in PEM",
            source=os.fspath(path),
            expected="1",
            advice=GET_KEYS,
        )
    label, text = blocks[0]
    try:
        return label, base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise FormatError(
            "the key is not Base64", source=os.fspath(path), advice="copy the file of the key again"
        ) from None


def _pem_text(label: bytes, der: bytes) -> bytes:
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, base64.b64encode(der), label)


def _bounded(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a small file. Raises FormatError, OSError."""
    with open(path, "rb") as file:
        found = file.read(KEY_FILE_BYTES + 1)
    if len(found) > KEY_FILE_BYTES:
        raise FormatError(
            "the file is too long for a key",
            source=os.fspath(path),
            expected=f"at most {KEY_FILE_BYTES} bytes",
            advice="give the file of a key",
        )
    return found
