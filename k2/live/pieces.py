"""Records become rows of one form, and rows of one form become fewer: a monoid.

Whatever the split of a stream into batches, and in whatever order these are merged, the rows are
the same. A batch costs numpy time for its records and none of Python's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2.live.forms import (
    AHEAD_MAX_NS,
    BAR_NS,
    BARS,
    FIRST,
    LATEST,
    NOTIONAL,
    TEXT_MAX,
    VOLUME,
    Form,
)
from k2.live.groups import Groups, Int64s, Places, codes
from k2.live.limbs import carried, product, split
from k2.schemas import TRADES, Kind

__all__ = ["Piece", "aggregate", "merge"]

Flags = npt.NDArray[np.bool_]
Columns = Mapping[str, Int64s]


@dataclass(frozen=True, slots=True)
class Piece:
    """What some records say; without records both tables are empty."""

    latest: pa.Table  # schema of `LATEST[kind]`
    bars: pa.Table  # schema of `BARS`; of quotes none are kept


def aggregate(kind: Kind, rows: pa.Table, sessions: npt.NDArray[np.int32], counted: Flags) -> Piece:
    """Return what a batch says of its symbols.

    A record that is far ahead of its own `ts_recv` (AHEAD_MAX_NS) is in no bar, and counts in its
    session.

    Args:
        kind: of the records.
        rows: n >= 0 rows with the columns of `kind.batch`.
        sessions: days since the epoch.
        counted: which rows count: those that are in the kind's table, or will be.
    """
    form = LATEST[kind]
    if not counted.all():
        rows, sessions = rows.filter(pa.array(counted)), sessions[counted]
    if rows.num_rows == 0:
        return Piece(form.schema.empty_table(), BARS.schema.empty_table())
    rows = rows.combine_chunks()
    exchange, symbol = (_codes(rows.column(name)) for name in ("exchange", "symbol"))
    place = [rows.column(name).to_numpy() for name in form.last]
    single = {
        "session": sessions.astype(np.int64),
        "records": np.ones(rows.num_rows, np.int64),
        **dict(zip(FIRST, place, strict=True)),
    }
    if kind is not TRADES:
        last, columns = _reduce(form, [exchange, symbol], {**single, **_named(form, place)})
        return Piece(_cut(_table(form, rows, last, columns)), BARS.schema.empty_table())
    price, size = (_unscaled(rows.column(name)) for name in ("price", "size"))
    single |= dict.fromkeys(("open", "high", "low", "close"), price)
    single |= zip(VOLUME, split(size), strict=True)
    single |= zip(NOTIONAL, product(price, size), strict=True)
    minute = place[0] // BAR_NS
    single |= {"start": minute * BAR_NS, **_named(BARS, place)}
    keys = [exchange, symbol, sessions, minute]
    of_bar, bars = _reduce(BARS, keys, single)
    # What the minutes say together is what the session says.
    minutes = {**bars, **_named(form, [bars[name] for name in BARS.last])}
    last, columns = _reduce(form, [exchange[of_bar], symbol[of_bar]], minutes)
    latest = _cut(_table(form, rows, of_bar[last], columns))
    kept = minute - rows.column("ts_recv").to_numpy() // BAR_NS <= AHEAD_MAX_NS // BAR_NS
    if not kept.all():
        # One clock that is years ahead would push the bars of all other symbols out.
        if not kept.any():
            return Piece(latest, BARS.schema.empty_table())
        left = np.flatnonzero(kept)
        single = {name: column[left] for name, column in single.items()}
        of_bar, bars = _reduce(BARS, [column[left] for column in keys], single)
        of_bar = left[of_bar]
    return Piece(latest, _table(BARS, rows, of_bar, bars))


def merge(form: Form, tables: Sequence[pa.Table]) -> pa.Table:
    """Return what tables of one form say together, one row a key, in no order.

    Raises:
        ArrowInvalid: a table is of another schema.
    """
    rows = pa.concat_tables(tables).combine_chunks() if tables else form.schema.empty_table()
    if rows.num_rows == 0:
        return rows
    int64s = [field.name for field in form.schema if field.type == pa.int64()]
    numbers = {name: rows.column(name).chunk(0).to_numpy() for name in int64s}  # not copied
    keys: list[npt.NDArray[np.integer]] = [_codes(rows.column(name)) for name in form.keys[:2]]
    if form is BARS:
        keys += [numbers["session"], numbers["start"] // BAR_NS]
    code = codes(*keys)
    groups = Groups(code)
    alone = groups.counts == 1
    if not alone.any():
        last, columns = _reduce(form, keys, numbers)
        return _table(form, rows, last, columns)
    # Most bars of many symbols: a key with one row stays as it is.
    whole = rows.take(pa.array(groups.by[groups.starts[alone]]))
    left = groups.by[np.repeat(~alone, groups.counts)]
    if not len(left):
        return whole
    numbers = {name: column[left] for name, column in numbers.items()}
    last, columns = _reduce(form, [key[left] for key in keys], numbers)
    return pa.concat_tables([whole, _table(form, rows, left[last], columns)])


def _reduce(
    form: Form, keys: Sequence[npt.NDArray[np.integer]], rows: Columns
) -> tuple[Places, dict[str, Int64s]]:
    """Return the last row of each key, and the columns that are not simply that row's."""
    code = codes(*keys)
    groups = Groups(code)
    left: Places | None = None
    if form.newest:
        of_newest = rows["session"] == groups.each(groups.greatest(rows["session"]))
        if not of_newest.all():
            left = np.flatnonzero(of_newest)
            rows = {name: column[left] for name, column in rows.items()}
            groups = Groups(code[left])
    last = groups.last(*(rows[name] for name in form.last))
    first = groups.first(*(rows[name] for name in FIRST))
    columns = {name: rows[name][first] for name in form.opening}
    columns |= {name: groups.sums(rows[name]) for name in form.sums}
    for limbs in (VOLUME, NOTIONAL) if VOLUME[0] in columns else ():
        columns |= zip(limbs, carried([columns[name] for name in limbs]), strict=True)
    if "high" in form.schema.names:
        columns |= {"high": groups.greatest(rows["high"]), "low": groups.least(rows["low"])}
    for name in form.schema.names:
        if name in rows and name not in columns:
            columns[name] = rows[name][last]
    return last if left is None else left[last], columns


def _table(form: Form, rows: pa.Table, last: Places, columns: Columns) -> pa.Table:
    """Rows of a form: what `columns` lacks is of the rows `last`."""
    others = [name for name in form.schema.names if name not in columns]
    taken = rows.select(others).take(pa.array(last))
    arrays = [
        taken.column(name) if name not in columns else pa.array(columns[name])
        for name in form.schema.names
    ]
    return pa.table(arrays, schema=form.schema)


def _cut(latest: pa.Table) -> pa.Table:
    """The same with no string longer than `TEXT_MAX`; the keys are never cut."""
    for place, field in enumerate(latest.schema):
        if field.type == pa.string() and field.name not in ("exchange", "symbol"):
            longest = pc.max(pc.binary_length(latest.column(place))).as_py()  # bytes
            if longest is not None and longest > TEXT_MAX:
                cut = pc.utf8_slice_codeunits(latest.column(place), 0, TEXT_MAX)
                latest = latest.set_column(place, field, cut)
    return latest


def _named(form: Form, place: Sequence[Int64s]) -> dict[str, Int64s]:
    return dict(zip(form.last, place, strict=True))


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """Numbers of n >= 1 strings, in no order."""
    if pc.all(pc.equal(column, column[0])).as_py():  # of exchanges mostly, and four times as fast
        return np.zeros(len(column), np.int32)
    coded = column.combine_chunks().dictionary_encode()
    numbers: npt.NDArray[np.int32] = coded.indices.to_numpy()
    return numbers


def _unscaled(column: pa.ChunkedArray) -> Int64s:
    """Decimals of up to 18 digits as whole numbers of their last one."""
    array = column.combine_chunks()
    words = np.frombuffer(array.buffers()[1], np.int64)  # of 128 bits the low half comes first
    return words[2 * array.offset : 2 * (array.offset + len(array)) : 2].copy()
