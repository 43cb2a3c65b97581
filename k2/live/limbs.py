"""Exact sums of what 64 bits do not hold, in columns of int64.

A number is the sum of its limbs, the i-th times 2**(32 i). So numbers are added by adding columns,
in any order. Carried, a limb has 32 bits but for the highest, which has the sign: then no sum of
fewer than 2**30 numbers is too wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["carried", "joined", "product", "split"]

Int64s = npt.NDArray[np.int64]

_BITS = 32
_LOW = np.int64((1 << _BITS) - 1)


def split(values: Int64s) -> tuple[Int64s, Int64s]:
    """Return limbs of n >= 1 numbers, lowest first; sums of all n of a limb fit."""
    if _most(values) * len(values) < 1 << 62:
        return values, np.zeros(len(values), np.int64)
    return values & _LOW, values >> _BITS


def product(one: Int64s, other: Int64s) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Return limbs of n >= 1 products of numbers below 2**60; sums of all n of a limb fit."""
    (a, b), (c, d) = ((values & _LOW, values >> _BITS) for values in (one, other))
    lowest = a.view(np.uint64) * c.view(np.uint64)  # all of its 64 bits count
    low = (lowest & np.uint64(_LOW)).view(np.int64)
    high = (lowest >> np.uint64(_BITS)).view(np.int64)
    middle = b * c
    middle += a * d
    top = b * d
    if _most(one) * _most(other) * len(one) < 1 << 62 + _BITS:
        # What overflows on the way cancels out: all above the lowest limb fits into one.
        nothing = np.zeros(len(one), np.int64)
        return low, high + middle + (top << _BITS), nothing, nothing
    return low, high + (middle & _LOW), (middle >> _BITS) + (top & _LOW), top >> _BITS


def carried(limbs: Sequence[Int64s]) -> list[Int64s]:
    """Return the limbs of the same numbers, none but the highest wider than 32 bits."""
    narrow: list[Int64s] = []
    carry = np.zeros_like(limbs[0])
    for limb in limbs[:-1]:
        whole = limb + carry
        narrow.append(whole & _LOW)
        carry = whole >> _BITS
    return [*narrow, limbs[-1] + carry]


def joined(limbs: Iterable[int]) -> int:
    """Return the number, or sum of numbers, that limbs stand for."""
    return sum(limb << (_BITS * place) for place, limb in enumerate(limbs))


def _most(values: Int64s) -> int:
    return max(int(values.max()), -int(values.min()))
