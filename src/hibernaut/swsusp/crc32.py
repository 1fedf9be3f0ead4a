# SPDX-License-Identifier: GPL-2.0-or-later
"""The CRC-32 of zlib, and of two parts put together: by isal at the speed of memory, else by zlib and plain Python.

A distribution may have no package of isal; zlib is Python's own, some times slower.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

__all__ = ["combine_by_powers", "crc32", "crc32_combine"]

POLYNOMIAL = 0xEDB8_8320
"""The generator, its bits in reverse order: bit 31 is the coefficient of x^0."""
ONE, X = 1 << 31, 1 << 30


def combine_by_powers(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC of two parts in a row by the CRC of each: the first one times x^(8 n), plus the second one."""
    return _product(_power_of_x(8 * second_bytes), first) ^ second


def _product(one: int, other: int) -> int:
    """Return the product of two polynomials over GF(2), modulo the generator."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (POLYNOMIAL if other & 1 else 0)
    return product


@lru_cache(maxsize=64)
def _power_of_x(exponent: int) -> int:
    power, square = ONE, X
    while exponent:
        if exponent & 1:
            power = _product(power, square)
        square = _product(square, square)
        exponent >>= 1
    return power


try:
    from isal.isal_zlib import crc32, crc32_combine
except ImportError:
    crc32, crc32_combine = zlib.crc32, combine_by_powers
