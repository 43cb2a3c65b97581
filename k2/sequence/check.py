"""The sequence check: which trades are new, which are missing, which were seen before.

A batch costs numpy time for its rows and Python time for its symbols: symbols whose rows simply
continue are settled for all rows at once; only the others are folded one by one (`fold`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.errors import SchemaMismatch
from k2.sequence.fold import OK, Rows, fold
from k2.sequence.state import Gap, Rules, SymbolState

__all__ = ["Checked", "check", "sessions_of"]

Key = tuple[str, str]

_QUARTER_S = 900
_DAY_S = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Lies outside the dates that int64 nanoseconds can express.
_NO_SESSION = np.iinfo(np.int32).min


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check` found in a batch of n rows.

    `verdicts` are indices into `k2.schemas.VERDICTS`, `sessions` days since the epoch. Where
    `replayed` is true the row had been applied before: its verdict means nothing. `gaps` are in
    offset order. `states` holds the symbols with rows applied, and no others.
    """

    verdicts: npt.NDArray[np.uint8]
    sessions: npt.NDArray[np.int32]
    gaps: list[Gap]
    states: dict[Key, SymbolState]
    replayed: npt.NDArray[np.bool_]


def check(states: Mapping[Key, SymbolState], batch: pa.Table, rules: Rules) -> Checked:
    """Compare a batch's sequences with what was seen of each (exchange, symbol).

    Args:
        states: before the batch; symbols never seen are absent. Not changed.
        batch: n >= 0 rows of TRADE_BATCH in ascending `kafka_offset` order.
        rules: zones of the exchanges' trading dates, reset window, bound of the open gaps.

    Returns:
        Verdicts, sessions, gaps and updated states; any split of a stream gives the same.

    Raises:
        SchemaMismatch: a column is absent, of another type or has nulls, or offsets do not ascend.
    """
    sequences, times, offsets = (
        _column(batch, name, pa.int64()).to_numpy()
        for name in ("sequence", "ts_event", "kafka_offset")
    )
    if not (offsets[1:] > offsets[:-1]).all():
        raise SchemaMismatch("kafka_offset: does not ascend from row to row")
    exchange_codes, exchanges = _encode(batch, "exchange")
    symbol_codes, symbols = _encode(batch, "symbol")
    n = len(sequences)
    sessions = np.empty(n, np.int32)
    for code, exchange in enumerate(exchanges):
        zone = rules.zones.get(exchange, "UTC")
        if len(exchanges) == 1:
            sessions = sessions_of(times, zone)
        else:
            of_exchange = exchange_codes == code
            sessions[of_exchange] = sessions_of(times[of_exchange], zone)

    codes = exchange_codes.astype(np.int64) * len(symbols) + symbol_codes
    if len(exchanges) * len(symbols) <= 1 << 16:
        codes = codes.astype(np.uint16)  # numpy sorts 16 bits by radix, ten times faster
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    starts = _starts(codes)
    keys = [
        (exchanges[code // len(symbols)], symbols[code % len(symbols)])
        for code in codes[starts].tolist()
    ]
    before = [states.get(key) for key in keys]

    # Replayed rows are dropped first, so that what follows sees only rows to apply.
    applied = np.array([-1 if s is None else s.offset for s in before], np.int64)
    again = offsets[order] <= np.repeat(applied, np.diff(starts, append=n))
    replayed = np.zeros(n, np.bool_)
    if again.any():
        replayed[order] = again
        order, codes = order[~again], codes[~again]
        left = np.logical_or.reduceat(~again, starts)
        keys = [key for key, some in zip(keys, left.tolist(), strict=True) if some]
        before = [s for s, some in zip(before, left.tolist(), strict=True) if some]
        starts = _starts(codes)

    rows = Rows(sequences, times, sessions, offsets)[order]
    judged, gaps, after = _settle(rows, starts, keys, before, rules)
    verdicts = np.zeros(n, np.uint8)
    verdicts[order] = judged
    gaps.sort(key=lambda gap: gap.offset)
    return Checked(verdicts, sessions, gaps, after, replayed)


def _settle(
    rows: Rows,
    starts: npt.NDArray[np.intp],
    keys: list[Key],
    before: list[SymbolState | None],
    rules: Rules,
) -> tuple[npt.NDArray[np.uint8], list[Gap], dict[Key, SymbolState]]:
    """Judge rows grouped by symbol, in offset order within; `starts` is each one's first row."""
    n = len(rows.sequences)
    verdicts = np.full(n, OK, np.uint8)
    gaps: list[Gap] = []
    after: dict[Key, SymbolState] = {}
    if not n:
        return verdicts, gaps, after
    counts = np.diff(starts, append=n)
    session = np.array([_NO_SESSION if s is None else s.session for s in before], np.int32)
    previous = np.empty(n, np.int64)
    previous[1:] = rows.sequences[:-1]
    previous[starts] = [0 if s is None else s.last for s in before]
    # `>` beside `+ 1`, because the highest int64 plus one is the lowest.
    continues = (rows.sequences == previous + 1) & (rows.sequences > previous)
    continues &= rows.sessions == np.repeat(session, counts)
    plain = np.logical_and.reduceat(continues, starts).tolist()

    ends = starts + counts - 1
    last, last_ts = rows.sequences[ends].tolist(), rows.times[ends].tolist()
    offset, begin, number = rows.offsets[ends].tolist(), starts.tolist(), counts.tolist()
    for i, (key, state) in enumerate(zip(keys, before, strict=True)):
        if plain[i] and state is not None:
            after[key] = SymbolState(
                state.first,
                last[i],
                state.gaps,
                state.forgotten_through,
                session=state.session,
                last_ts=last_ts[i],
                offset=offset[i],
                earlier=state.earlier,
                rows=state.rows + number[i],
                gaps_found=state.gaps_found,
                missing=state.missing,
                late=state.late,
                duplicates=state.duplicates,
                resets=state.resets,
                gaps_forgotten=state.gaps_forgotten,
            )
            continue
        own = slice(begin[i], begin[i] + number[i])
        verdicts[own], found, after[key] = fold(state, key, rows[own], rules)
        gaps += found
    return verdicts, gaps, after


def sessions_of(times: npt.NDArray[np.int64], zone: str) -> npt.NDArray[np.int32]:
    """Return the local date in `zone` of each time (ns, UTC), as days since the epoch."""
    seconds = times // 1_000_000_000
    if zone != "UTC" and len(times):
        # Zones have changed their offset on whole quarters of an hour UTC for a century: one
        # look-up a quarter in the batch, not one a row.
        quarters = seconds // _QUARTER_S
        low = int(quarters.min())
        span = int(quarters.max()) - low + 1
        if span > 1 << 16:  # stray timestamps must not make the look-up table grow
            distinct, place = np.unique(quarters, return_inverse=True)
            seconds = seconds + np.array([_utc_offset_s(zone, q) for q in distinct.tolist()])[place]
        else:
            place = quarters - low
            table = np.zeros(span, np.int64)
            table[place] = 1
            for q in np.flatnonzero(table).tolist():
                table[q] = _utc_offset_s(zone, low + q)
            seconds = seconds + table[place]
    return (seconds // _DAY_S).astype(np.int32)


@lru_cache(maxsize=1 << 16)
def _utc_offset_s(zone: str, quarter: int) -> int:
    moment = _EPOCH + timedelta(seconds=quarter * _QUARTER_S)
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset() or timedelta()
    return int(offset.total_seconds())


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
