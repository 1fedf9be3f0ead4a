# SPDX-License-Identifier: GPL-2.0-or-later
"""Signatures are verified as RFC 8032 states, and as strictly as it admits; OpenSSL's code is the witness."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.sealing.ed25519 import L, P, is_public_key, is_signature
from tests.sealing.mutants import mutated

RFC_8032 = {
    "1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "SHA(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}
"""Section 7.1: secret key, public key, message, signature."""
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
"""The eight points of order 1, 2, 4 and 8 (RFC 7748 and 8032; the list is that of libsodium's tests)."""
NOT_CANONICAL = [
    "0100000000000000000000000000000000000000000000000000000000000080",  # x = 0 with a sign
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",  # the same at y = -1
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # y = P, for 0
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # y = P + 1, for 1
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


def openssl_accepts(signature: bytes, message: bytes, key: bytes) -> bool:
    """Return what OpenSSL says, through the package cryptography."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def plus_order(signature: bytes) -> bytes:
    """Return another signature of the same message, if S is not compared with L: S + L."""
    raised = int.from_bytes(signature[32:], "little") + L
    return signature[:32] + raised.to_bytes(32, "little")


@pytest.mark.parametrize("name", RFC_8032)
def test_the_vectors_of_the_rfc_are_accepted(name: str) -> None:
    """Its keys, messages and signatures; OpenSSL makes the same ones of its secret keys."""
    secret, public, message, signature = map(bytes.fromhex, RFC_8032[name])
    assert is_signature(signature, message, public)
    private = Ed25519PrivateKey.from_private_bytes(secret)
    assert private.public_key().public_bytes_raw() == public
    assert private.sign(message) == signature


@settings(max_examples=20)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.integers(0, 511))
def test_signatures_of_openssl_are_accepted_and_changed_ones_are_not(seed: bytes, message: bytes, bit: int) -> None:
    """Any key, any message; then one bit of the signature changed, and one of the message."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    assert is_signature(signature, message, public)
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    assert not is_signature(bytes(changed), message, public)
    assert not openssl_accepts(bytes(changed), message, public)
    assert not is_signature(signature, message + b"\0", public)


def test_s_must_be_below_the_order() -> None:
    """S + L satisfies the equation, and is refused, by OpenSSL as well: else a signature could be changed."""
    raised = plus_order(KEY.sign(b"image"))
    assert not is_signature(raised, b"image", PUBLIC)
    assert not openssl_accepts(raised, b"image", PUBLIC)


@pytest.mark.parametrize("encoded", [*SMALL_ORDER, *NOT_CANONICAL])
def test_keys_of_small_order_and_encodings_that_are_not_canonical_are_refused(encoded: str) -> None:
    """Under such a key R = S B is a signature of every message, or of one in eight."""
    assert not is_public_key(bytes.fromhex(encoded))


def test_a_key_with_a_part_of_small_order_is_refused() -> None:
    """A + T, for a T of order 2: -x and -y of A."""
    whole = int.from_bytes(PUBLIC, "little")
    sign, y = whole >> 255, whole & (1 << 255) - 1
    mixed = (P - y | (1 - sign) << 255).to_bytes(32, "little")
    assert is_public_key(PUBLIC)
    assert not is_public_key(mixed)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_of_another_length_are_refused(length: int) -> None:
    """No key is cut or filled up."""
    assert not is_public_key((PUBLIC * 2)[:length])
    assert not is_signature(KEY.sign(b""), b"", (PUBLIC * 2)[:length])
    assert not is_signature((KEY.sign(b"") * 2)[: 64 + length % 7 + 1], b"", PUBLIC)


def accepts_raised(accepts: Callable[[bytes, bytes, bytes], bool]) -> bool:
    """Return whether S + L passes."""
    return accepts(plus_order(KEY.sign(b"image")), b"image", PUBLIC)


def accepts_forged(accepts: Callable[[bytes, bytes, bytes], bool]) -> bool:
    """Return whether the neutral element as a key accepts R = S B, which needs no private key."""
    base = bytes.fromhex("5866666666666666666666666666666666666666666666666666666666666666")
    forged = base + (1).to_bytes(32, "little")
    return accepts(forged, b"image", bytes.fromhex(SMALL_ORDER[0]))


def accepts_long_key(accepts: Callable[[bytes, bytes, bytes], bool]) -> bool:
    """Return whether y = P + 1 passes for the neutral element."""
    base = bytes.fromhex("5866666666666666666666666666666666666666666666666666666666666666")
    return accepts(base + (1).to_bytes(32, "little"), b"image", bytes.fromhex(NOT_CANONICAL[3]))


def accepts_another_message(accepts: Callable[[bytes, bytes, bytes], bool]) -> bool:
    """Return whether a signature passes for another message."""
    return accepts(KEY.sign(b"image"), b"other", PUBLIC)


@pytest.mark.parametrize(
    ("changes", "property_"),
    [
        ([("if s >= L:", "if s >= 2**256:")], accepts_raised),
        (
            [
                (
                    "return point is not None and not _is_neutral(point) and _is_neutral(_multiple(point, L))",
                    "return point is not None",
                )
            ],
            accepts_forged,
        ),
        ([("    digest.update(message)\n", "")], None),
    ],
)
def test_mutants_are_caught(
    changes: list[tuple[str, str]], property_: Callable[[Callable[[bytes, bytes, bytes], bool]], bool] | None
) -> None:
    """Without the check of S, of the key's order, or the message, what is refused above is accepted or the reverse."""
    ((old, new),) = changes
    with mutated("ed25519", old, new):
        mutant = importlib.import_module("hibernaut.sealing.ed25519").is_signature
        if property_ is None:
            assert not mutant(bytes.fromhex(RFC_8032["2"][3]), b"\x72", bytes.fromhex(RFC_8032["2"][1]))
        else:
            assert property_(mutant)
    for one in (accepts_raised, accepts_forged, accepts_long_key, accepts_another_message):
        assert not one(is_signature)
