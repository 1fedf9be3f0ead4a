# SPDX-License-Identifier: GPL-2.0-or-later
"""Verification of Ed25519 signatures in the standard library alone (RFC 8032, section 5.1.7).

Only public values are computed with, so the time that it takes tells nothing. Of what RFC 8032 leaves open, the strict
choice is made: the encoding of a point must be canonical, S must be below the order L, the public key must be a point
of order L (no other element of a small subgroup, and none with a part in one), R must not be the neutral element, and
the equation holds without the cofactor. Hence one message has one signature by one key that is accepted.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

__all__ = ["KEY_BYTES", "SIGNATURE_BYTES", "is_public_key", "is_signature"]

KEY_BYTES = 32
SIGNATURE_BYTES = 64
P = 2**255 - 19
"""Prime of the field."""
L = 2**252 + 27742317777372353535851937790883648493
"""Order of the base point."""
D = -121665 * pow(121666, -1, P) % P
"""The curve is -x^2 + y^2 = 1 + D x^2 y^2."""
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


class Point(NamedTuple):
    """A point in extended coordinates: x = X / Z, y = Y / Z, x y = T / Z."""

    X: int
    Y: int
    Z: int
    T: int


NEUTRAL = Point(0, 1, 1, 0)


def _sum(one: Point, other: Point) -> Point:
    """Return the sum of two points (RFC 8032, section 5.1.4: complete, so it doubles, too)."""
    a = (one.Y - one.X) * (other.Y - other.X) % P
    b = (one.Y + one.X) * (other.Y + other.X) % P
    c = 2 * D * one.T * other.T % P
    d = 2 * one.Z * other.Z % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return Point(e * f % P, g * h % P, f * g % P, e * h % P)


def _multiple(point: Point, factor: int) -> Point:
    """Return a point added to itself so many times."""
    found = NEUTRAL
    for bit in bin(factor)[2:]:
        found = _sum(found, found)
        if bit == "1":
            found = _sum(found, point)
    return found


def _is_neutral(point: Point) -> bool:
    return point.X % P == 0 and (point.Y - point.Z) % P == 0


def _encoded(point: Point) -> bytes:
    """Return the 32 bytes of a point: y, and the lowest bit of x as the highest of all."""
    inverse = pow(point.Z, -1, P)
    x, y = point.X * inverse % P, point.Y * inverse % P
    return (y | (x & 1) << 255).to_bytes(KEY_BYTES, "little")


def _decoded(encoded: bytes) -> Point | None:
    """Return the point of 32 bytes; None if they are not its canonical encoding (RFC 8032, section 5.1.3)."""
    whole = int.from_bytes(encoded, "little")
    sign, y = whole >> 255, whole & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P  # D is not a square, so the divisor is never 0
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return Point(x, y, 1, x * y % P)


BASE = _decoded((4 * pow(5, -1, P) % P).to_bytes(KEY_BYTES, "little"))
"""The base point: y = 4/5, x even."""


def is_public_key(key: bytes) -> bool:
    """Return whether 32 bytes are a point of order L: the public key of some private one."""
    point = _decoded(key) if len(key) == KEY_BYTES else None
    return point is not None and not _is_neutral(point) and _is_neutral(_multiple(point, L))


def is_signature(signature: bytes, message: bytes, key: bytes) -> bool:
    """Return whether 64 bytes are the signature of a message by the owner of a public key."""
    if len(signature) != SIGNATURE_BYTES or not is_public_key(key):
        return False
    r, s = signature[:KEY_BYTES], int.from_bytes(signature[KEY_BYTES:], "little")
    if s >= L:  # S + L would be another signature of the same message
        return False
    point, base = _decoded(key), BASE
    if point is None or base is None:
        return False
    digest = hashlib.sha512(r + key)
    digest.update(message)
    factor = int.from_bytes(digest.digest(), "little") % L
    negative = Point(P - point.X, point.Y, 1, P - point.T)
    found = _sum(_multiple(base, s), _multiple(negative, factor))
    return not _is_neutral(found) and _encoded(found) == r
