"""Exact sums of what 64 bits do not hold, in columns of int64.

A number is cut into limbs of 32 bits, of which only the highest has a sign; sums of limbs are
limbs of the sum, whatever the carries. So numbers are added by adding int64 columns, in any
order, and no sum of fewer than 2**29 numbers is ever too wide.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["joined", "product", "split"]

Int64s = npt.NDArray[np.int64]

_BITS = 32
_LOW = np.int64((1 << _BITS) - 1)


def split(values: Int64s) -> tuple[Int64s, Int64s]:
    """Return the limbs of n numbers, lowest first."""
    return values & _LOW, values >> _BITS


def product(one: Int64s, other: Int64s) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Return the limbs of n products of numbers below 2**60, lowest first; a limb has 33 bits."""
    (a, b), (c, d) = split(one), split(other)
    lowest = a.view(np.uint64) * c.view(np.uint64)  # all of its 64 bits count
    middle = b * c
    middle += a * d
    low = (lowest & np.uint64(_LOW)).view(np.int64)
    high = (lowest >> np.uint64(_BITS)).view(np.int64)
    carried, top = split(b * d)
    return low, high + (middle & _LOW), (middle >> _BITS) + carried, top


def joined(limbs: Iterable[int]) -> int:
    """Return the number, or sum of numbers, that limbs stand for."""
    return sum(limb << (_BITS * place) for place, limb in enumerate(limbs))
