"""The sequence check: which records are new, which are missing, which were seen before.

A batch costs numpy time for its rows and little Python time for its symbols: symbols whose rows
simply continue are settled for all rows at once; only the others are folded one by one (`fold`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import compress, repeat
from operator import add

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2 import calendars
from k2.calendars import Calendar, local_dates
from k2.errors import SchemaMismatch
from k2.sequence.fold import FIRST, OK, fold
from k2.sequence.ledger import Change, order
from k2.sequence.rows import Rows
from k2.sequence.rules import Rules
from k2.sequence.state import HEADER_BYTES, Chain, Memory, SymbolState, header_columns

__all__ = ["Checked", "Key", "Symbols", "check"]

#: Exchange and symbol; the symbol is empty where a channel has one counter for all.
Key = tuple[str, str]
Symbols = dict[Key, SymbolState]

Flags = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

#: Stands for a symbol that was never seen; its session is none that nanoseconds can express.
_UNSEEN = Memory(int(np.iinfo(np.int32).min), Chain(0, 0, 0, 0, []), -1).pack()


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check` found in a batch of n rows.

    `verdicts` are indices into `k2.schemas.VERDICTS`, `sessions` days since the epoch. Where
    `replayed` is true the row had been applied before: its verdict means nothing. `changes` are
    the rows of the gap ledger, in offset order. `states` holds the counters with rows applied, and
    no others.
    """

    verdicts: npt.NDArray[np.uint8]
    sessions: Int32s
    changes: list[Change]
    states: Symbols
    replayed: Flags


def check(
    states: Mapping[Key, SymbolState], batch: pa.Table, rules: Rules, stream: str = ""
) -> Checked:
    """Compare a batch's sequences with what was seen of each (exchange, symbol).

    Args:
        states: before the batch; symbols never seen are absent. Not changed.
        batch: n >= 0 rows of any `Kind.batch`, all of one partition, in ascending `kafka_offset`
                order.
        rules: as the settings have them.
        stream: names topic and partition in the ledger's ids.

    Returns:
        Verdicts, sessions, changes of the ledger and updated states; any split of a stream gives
        the same, but for the ledger's notes on the way (see `k2.sequence.ledger`).

    Raises:
        SchemaMismatch: a column is absent, of another type or has nulls, or offsets do not ascend.
        SettingError: an exchange's calendar does not exist.
    """
    sequences, times, received, offsets = (
        _column(batch, name, pa.int64()).to_numpy()
        for name in ("sequence", "ts_event", "ts_recv", "kafka_offset")
    )
    if not (offsets[1:] > offsets[:-1]).all():
        raise SchemaMismatch("kafka_offset: does not ascend from row to row")
    exchange_codes, exchanges = _encode(batch, "exchange")
    symbol_codes, symbols = _encode(batch, "symbol")
    n = len(sequences)
    open_hours = {
        name: calendars.load(rules.calendars[name]) for name in exchanges if name in rules.calendars
    }
    days, outside = _place(times, exchange_codes, exchanges, rules, open_hours)
    sessions = days
    if endless := rules.never_reset.intersection(exchanges):
        sessions = np.where(_of(exchange_codes, exchanges, endless), np.int32(0), days)
    if channels := rules.by_channel.intersection(exchanges):
        whole = _of(exchange_codes, exchanges, channels)
        symbol_codes = np.where(whole, np.int32(len(symbols)), symbol_codes)
        symbols = [*symbols, ""]

    codes = exchange_codes.astype(np.int64) * len(symbols) + symbol_codes
    if len(exchanges) * len(symbols) <= 1 << 16:
        codes = codes.astype(np.uint16)  # numpy sorts 16 bits by radix, ten times faster
    by_key = np.argsort(codes, kind="stable")
    codes = codes[by_key]
    starts = _starts(codes)
    place = codes[starts].astype(np.int64)
    of_exchange = (place // max(len(symbols), 1)).tolist()
    of_symbol = (place % max(len(symbols), 1)).tolist()
    keys = list(
        zip(
            map(exchanges.__getitem__, of_exchange),
            map(symbols.__getitem__, of_symbol),
            strict=True,
        )
    )
    before = list(map(states.get, keys, repeat(_UNSEEN)))

    # Replayed rows are dropped first, so that what follows sees only rows to apply.
    headers = header_columns(before)
    again = offsets[by_key] <= np.repeat(headers["offset"], np.diff(starts, append=n))
    replayed = np.zeros(n, np.bool_)
    if again.any():
        replayed[by_key] = again
        left = np.logical_or.reduceat(~again, starts)
        by_key, codes = by_key[~again], codes[~again]
        keys, before, headers = (
            list(compress(keys, left)),
            list(compress(before, left)),
            headers[left],
        )
        starts = _starts(codes)

    rows = Rows(sequences, times, received, days, sessions, offsets, outside)
    changes: list[Change] = []
    after: Symbols = {}
    verdicts = np.zeros(n, np.uint8)
    if keys:
        verdicts[by_key] = OK
        plain, unseen = _settle(rows, by_key, starts, keys, before, headers, after)
        verdicts[by_key[starts[unseen]]] = FIRST
        counts = np.diff(starts, append=len(by_key))
        others = by_key[np.repeat(~plain, counts)]
        strange, judged, b = rows[others], np.empty(len(others), np.uint8), 0
        for i in np.flatnonzero(~plain).tolist():
            a, b = b, b + int(counts[i])
            state, hours = before[i], open_hours.get(keys[i][0])
            judged[a:b], found, after[keys[i]] = fold(
                None if state is _UNSEEN else state, keys[i], strange[a:b], rules, stream, hours
            )
            changes += found
        verdicts[others] = judged
    changes.sort(key=order)
    return Checked(verdicts, days, changes, after, replayed)


def _settle(
    rows: Rows,
    by_key: npt.NDArray[np.intp],
    starts: npt.NDArray[np.intp],
    keys: list[Key],
    before: list[SymbolState],
    headers: npt.NDArray[np.void],
    after: Symbols,
) -> tuple[Flags, Flags]:
    """Put the states of those keys into `after` whose rows simply continue.

    `by_key` are the rows grouped by key, in offset order within; `starts` where each key begins.

    Returns:
        Which keys these are, and which keys were never seen before: of those, the first row
        continues whatever it is.
    """
    n = len(by_key)
    counts = np.diff(starts, append=n)
    sequences = rows.sequences[by_key]
    unseen: Flags = headers["rows"] == 0
    if unseen.any():
        headers = headers.copy()
        headers["session"][unseen] = rows.sessions[by_key[starts[unseen]]]
        headers["first"][unseen] = sequences[starts[unseen]]
    previous = np.empty(n, np.int64)
    previous[1:] = sequences[:-1]
    previous[starts] = headers["last"]
    # `>` beside `+ 1`, because the highest int64 plus one is the lowest.
    continues = (sequences == previous + 1) & (sequences > previous)
    continues[starts[unseen]] = True
    continues &= rows.sessions[by_key] == np.repeat(headers["session"], counts)
    if rows.outside is not None:
        continues &= ~rows.outside[by_key]
    # The first record that is in session again ends a run of those that are not.
    plain: Flags = np.logical_and.reduceat(continues, starts) & (headers["outside"] == 0)

    ends = by_key[starts + counts - 1]
    new = headers.copy()
    new["last"], new["last_ts"] = rows.sequences[ends], rows.times[ends]
    new["offset"] = new["last_offset"] = rows.offsets[ends]
    new["rows"] += counts
    heads: Iterable[bytes] = new.view(f"V{HEADER_BYTES}").tolist()
    if sum(map(len, before)) > HEADER_BYTES * len(before):
        heads = map(add, heads, [state[HEADER_BYTES:] for state in before])
    settled = plain.tolist()
    states = map(SymbolState, compress(heads, settled))
    after.update(zip(compress(keys, settled), states, strict=True))
    return plain, unseen


def _place(
    times: Int64s,
    codes: Int32s,
    exchanges: list[str],
    rules: Rules,
    open_hours: Mapping[str, Calendar | None],
) -> tuple[Int32s, Flags | None]:
    """Give each row its session, and tell which rows are out of session."""
    if len(exchanges) == 1:
        return _place_one(times, exchanges[0], rules, open_hours)
    n = len(times)
    days, outside = np.zeros(n, np.int32), np.zeros(n, np.bool_)
    for code, exchange in enumerate(exchanges):
        own = codes == code
        days[own], strange = _place_one(times[own], exchange, rules, open_hours)
        if strange is not None:
            outside[own] = strange
    return days, outside if outside.any() else None


def _place_one(
    times: Int64s, exchange: str, rules: Rules, open_hours: Mapping[str, Calendar | None]
) -> tuple[Int32s, Flags | None]:
    calendar = open_hours.get(exchange)
    if calendar is None:
        return local_dates(times, rules.zones.get(exchange, "UTC")), None
    return calendar.place(times, rules.session_margin_ms * 1_000_000)


def _of(codes: Int32s, exchanges: list[str], names: frozenset[str]) -> Flags:
    """Which rows are of one of the exchanges in `names`."""
    return np.isin(codes, [i for i, name in enumerate(exchanges) if name in names])


def _starts(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    changed = np.empty(len(codes), np.bool_)
    changed[:1] = True
    changed[1:] = codes[1:] != codes[:-1]
    return np.flatnonzero(changed)


def _encode(batch: pa.Table, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
    column = _column(batch, name, pa.string()).dictionary_encode()
    return column.indices.to_numpy(), column.dictionary.to_pylist()


def _column(batch: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    if name not in batch.column_names:
        raise SchemaMismatch(f"{name}: absent")
    column = batch.column(name)
    if column.type != kind:
        raise SchemaMismatch(f"{name}: {column.type}, not {kind}")
    if column.null_count:
        raise SchemaMismatch(f"{name}: {column.null_count} nulls in {len(column)} rows")
    return column.combine_chunks()
