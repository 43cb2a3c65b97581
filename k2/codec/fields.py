"""The fields of records, as Polars read them, proven and made into columns.

Polars says what it read, not where. Where each field must lie follows from the shortest encoding of
all before it; only if that leads exactly to the end of every datum was nothing misread.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from k2.codec.framing import FramingError, container, varint_sizes, zigzag
from k2.codec.layout import DECIMAL, ENUM, LAYOUTS, OPTIONAL, OPTIONAL_DECIMAL
from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import SIDES, Kind

__all__ = ["FIELDS", "attempt", "read_datums", "read_fields", "require", "sizes"]

Ints = npt.NDArray[np.int64]
T = TypeVar("T")

log = logging.getLogger(__name__)

_LIMIT = 10**PRICE_PRECISION
_SIDES = pa.array(SIDES)
_READ_AS = {
    DECIMAL: "bytes",
    ENUM: "long",
    OPTIONAL: ["null", "string"],
    OPTIONAL_DECIMAL: ["null", "bytes"],
}

#: What reading raises on broken data: Polars has several kinds of error, and some are panics.
_UNPROVEN = (FramingError, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)

#: Avro's schema of each kind's fields as Polars shall read them.
FIELDS: dict[Kind, list[dict[str, Any]]] = {
    kind: [{"name": name, "type": _READ_AS.get(word, word)} for name, word in layout]
    for kind, layout in LAYOUTS.items()
}


def attempt(read: Callable[..., T], *args: Any) -> T | None:
    """What `read` returns, or None where it cannot be proven; it is then read another way."""
    try:
        return read(*args)
    except _UNPROVEN as exc:
        log.debug("not proven: %r", exc)
    except Exception:
        # None is known. Records are worth more than the reason: say it, and read on.
        log.exception("%s failed in a way that broken data does not explain", read.__name__)
    return None


def require(holds: Any) -> None:
    """Raise FramingError unless all of it holds."""
    if not np.all(holds):
        raise FramingError


def sizes(numbers: Ints) -> Ints | np.int64:
    """Bytes of each shortest varint; a scalar when all n >= 1 are alike."""
    found = varint_sizes(zigzag(numbers))
    # A varint of 10 bytes has bits to spare, which Polars drops: it is not the only encoding.
    require(found < 10)
    return found


def read_datums(kind: Kind, datums: bytes, lengths: Ints) -> list[pa.Array]:
    """Read n datums, one behind the other; return their columns in the order of the layout.

    Args:
        lengths: of each datum in bytes; sum to that of `datums`.

    Raises:
        FramingError, or what Polars raises: one of them is no such record in its shortest encoding.
    """
    frame = pl.read_avro(io.BytesIO(container(FIELDS[kind], datums, len(lengths))))
    require(frame.height == len(lengths))
    ends = np.cumsum(lengths) + 8
    # Amounts are read as the last of eight bytes: those of the first need some before them.
    return read_fields(kind, frame, bytes(8) + datums, ends - lengths, ends)


def read_fields(
    kind: Kind, frame: pl.DataFrame, body: bytes, at: Any, ends: Ints
) -> list[pa.Array]:
    """Prove that the fields fill `at`..`ends` of each row, and return their columns.

    Args:
        frame: n rows with the fields of the kind, read by the schema FIELDS.
        body: what they were read from; datum i is body[at[i]:ends[i]], and at[i] + 7 >= 8.

    Raises:
        FramingError: they need not lie there, or a value is none of this kind.
    """
    columns: list[Any] = []
    branches: list[tuple[Any, Any]] = []
    decimals: list[tuple[int, Any, Any, Any]] = []
    for name, word in LAYOUTS[kind]:
        series = frame[name]
        if word in ("long", ENUM):
            numbers = series.to_numpy()
            at = at + sizes(numbers)
            columns.append(_sides(numbers) if word == ENUM else pa.array(numbers))
        elif word == DECIMAL:
            width = series.bin.size().cast(pl.Int64).to_numpy()
            require((width > 0) & (width <= 8))
            at = at + 1 + width
            decimals.append((len(columns), at, width, None))
            columns.append(None)
        elif word == OPTIONAL_DECIMAL:
            null = series.is_null().to_numpy()
            branches.append((at, null))
            width = series.bin.size().cast(pl.Int64).fill_null(0).to_numpy()
            require(null | (width > 0) & (width <= 8))
            # The branch, then for an amount its length, which is one byte, and itself.
            at = at + 1 + np.where(null, 0, 1 + width)
            decimals.append((len(columns), at, width, null))
            columns.append(None)
        else:
            size = series.str.len_bytes().cast(pl.Int64)
            if word == OPTIONAL:
                null = series.is_null().to_numpy()
                branches.append((at, null))
                size = size.fill_null(0)
                # The branch, then for a string its length too.
                text = size.to_numpy()
                at = at + 1 + np.where(null, 0, sizes(text) + text)
            else:
                text = size.to_numpy()
                at = at + sizes(text) + text
            columns.append(series.to_arrow(compat_level=pl.CompatLevel.newest()).cast(pa.string()))
    require(at == ends)

    # From here on the positions are proven, and may be read. Polars takes any branch but 0 for
    # a value.
    data = np.frombuffer(body, np.uint8)
    for branch_at, null in branches:
        require(data[branch_at] == np.where(null, 0, 2))
    words = np.ndarray((len(body) - 7,), "V8", body, strides=(1,))
    for i, end, width, null in decimals:
        columns[i] = _decimals(words[end - 8], width, null)
    return columns


def _sides(index: Ints) -> Any:
    require((index >= 0) & (index < len(SIDES)))
    return _SIDES.take(pa.array(index))


def _decimals(words: Any, width: Ints, null: Any) -> Any:
    """(n,) words of eight bytes, whose last `width` are a big-endian number, to decimals.

    `null`: (n,) of which rows are null; None for none of them.
    """
    shift = 64 - 8 * width
    if null is not None:
        shift = np.where(null, 0, shift)
    numbers = (words.view(">i8").astype(np.int64) << shift) >> shift
    valid = None
    if null is not None and null.any():
        numbers[null] = 0
        valid = pa.array(~null).buffers()[1]
    require((numbers < _LIMIT) & (numbers > -_LIMIT))
    wide = np.empty((len(numbers), 2), np.int64)
    wide[:, 0] = numbers
    np.right_shift(numbers, 63, out=wide[:, 1])
    amount = pa.decimal128(PRICE_PRECISION, PRICE_SCALE)
    return pa.Array.from_buffers(amount, len(numbers), [valid, pa.py_buffer(wide)])
