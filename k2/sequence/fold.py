"""The fold of one counter's rows into its state.

Rows are folded in runs (same session, strictly increasing): a long run costs numpy time, so that
a replayed topic is not paid for row by row; a short one is folded row by row. Both ways give the
same, which a property test holds.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from k2.calendars import Calendar
from k2.schemas import VERDICTS
from k2.sequence.gaps import OpenGaps, find
from k2.sequence.ledger import Change, Ledger
from k2.sequence.rows import Rows
from k2.sequence.rules import Rules
from k2.sequence.runs import extend_outside, extend_repeated
from k2.sequence.state import Chain, Memory, Run, SymbolState

__all__ = ["EARLIER_MAX", "OK", "fold"]

FIRST, OK, GAP, LATE, RESET, DUPLICATE = range(len(VERDICTS))

#: Former sessions whose chains are kept, so that their late rows can still be judged.
EARLIER_MAX = 4
#: Below this many rows a run is cheaper row by row than through numpy.
RUN_ROWS_MIN = 32

Int64s = npt.NDArray[np.int64]
Verdicts = npt.NDArray[np.uint8]


def fold(
    state: SymbolState | None,
    key: tuple[str, str],
    rows: Rows,
    rules: Rules,
    stream: str,
    calendar: Calendar | None,
) -> tuple[Verdicts, list[Change], SymbolState]:
    """Fold one counter's n >= 1 rows into its state.

    Args:
        state: before the rows; None if the counter was never seen.
        key: (exchange, symbol), for the ledger.
        rules: reset window, bound of the open gaps, limits of severity.
        stream: topic and partition, for the ledger.
        calendar: the exchange's, if it has one.

    Returns:
        n verdicts, the changes of the ledger in no order, and the state after the rows.
    """
    folding = _Fold(state, rows, rules, Ledger(stream, key, rules), calendar)
    return folding.verdicts, folding.ledger.changes, folding.memory.pack()


class _Fold:
    """One run of `fold`; a row is named by its index in the arrays."""

    def __init__(
        self,
        state: SymbolState | None,
        rows: Rows,
        rules: Rules,
        ledger: Ledger,
        calendar: Calendar | None,
    ) -> None:
        self.ledger, self.calendar = ledger, calendar
        self.window_ns = rules.reset_window_ms * 1_000_000
        self.rows = rows
        self.sequences, self.times = rows.sequences, rows.times
        self.sessions, self.offsets = rows.sessions, rows.offsets
        self.verdicts = np.empty(len(rows.sequences), np.uint8)
        if state is None:
            self.verdicts[0] = FIRST
            self.memory = Memory(int(rows.sessions[0]), self._begin(0), int(rows.offsets[0]))
        else:
            self.memory = state.unpack()
        self.gaps = OpenGaps(rows, self.memory, ledger, rules.gaps_open_max)
        begin = int(state is None)
        if len(rows.sequences) - begin < RUN_ROWS_MIN:
            self._each(begin, len(rows.sequences))
        else:
            self._runs(begin)
        self.gaps.end()
        self._end()

    def _end(self) -> None:
        """What is known of the rows together."""
        memory, counts = self.memory, np.bincount(self.verdicts, minlength=len(VERDICTS)).tolist()
        if counts[DUPLICATE] or (counts[RESET] and memory.repeated is not None):
            memory.repeated = extend_repeated(
                memory.repeated, self.rows, self.verdicts, self.ledger
            )
        if self.rows.outside is not None or memory.outside is not None:
            memory.outside = extend_outside(memory.outside, self.rows, self.verdicts, self.ledger)
        memory.offset = int(self.offsets[-1])
        memory.rows += len(self.verdicts)
        memory.gaps_found += counts[GAP]
        memory.late += counts[LATE]
        memory.duplicates += counts[DUPLICATE]
        memory.resets += counts[RESET]

    def _runs(self, begin: int) -> None:
        seq, days = self.sequences[begin:], self.sessions[begin:]
        broken = (days[1:] != days[:-1]) | (seq[1:] <= seq[:-1])
        if self.rows.outside is not None:
            outside = self.rows.outside[begin:]
            broken |= outside[1:] != outside[:-1]
        runs = np.flatnonzero(broken) + (begin + 1)
        # Short runs that stand together are folded together: interleaved feeds make many.
        short = begin
        for a, b in pairwise([begin, *runs.tolist(), len(self.sequences)]):
            if b - a >= RUN_ROWS_MIN:
                self._each(short, a)
                self._run(a, b)
                short = b
        self._each(short, len(self.sequences))

    def _each(self, a: int, b: int) -> None:
        """Judge rows a..b-1 one by one."""
        if a == b:
            return
        columns = (self.sequences[a:b], self.times[a:b], self.sessions[a:b])
        rows = zip(range(a, b), *(column.tolist() for column in columns), strict=True)
        self.verdicts[a:b] = [self._row(*row) for row in rows]

    # One row.

    def _row(self, row: int, seq: int, ts: int, session: int) -> int:
        if self._advances(row, session):
            # Records before the session's margin may have begun its chain.
            begun = self.memory.earlier.pop(session, None)
            self._keep(self.memory.session, self.memory.chain, row)
            self.memory.session = session
            self.memory.chain = begun or self._begin(row)
            if begun is None:
                return RESET
        chain = self._chain(session)
        if chain is None:
            # A session never heard of, or too long ago: nothing proves that the row was seen.
            self._keep(session, self._begin(row), row)
            return LATE
        if seq > chain.last:
            skipped = seq != chain.last + 1
            if skipped:
                self.gaps.open(chain, row, seq, ts)
            chain.last, chain.last_ts, chain.last_offset = seq, ts, int(self.offsets[row])
            return GAP if skipped else OK
        place = find(chain.gaps, seq)
        # What is missing is waited for; what was before the first row is not.
        awaited = place is not None and seq > chain.first
        if chain is self.memory.chain and not awaited and self._fell(chain, seq, ts):
            self._restart(row, seq, ts)
            return RESET
        if place is not None:
            self.gaps.fill(chain, *place, seq, row)
            return LATE
        # Forgotten gaps are not provably seen, and a row twice is better than a row lost.
        if chain.forgotten_through is not None and seq <= chain.forgotten_through:
            return LATE
        return DUPLICATE

    def _begin(self, row: int) -> Chain:
        return Chain.begin(int(self.sequences[row]), int(self.times[row]), int(self.offsets[row]))

    def _advances(self, row: int, session: int) -> bool:
        """Whether the row begins a new session; one at an odd hour does not."""
        outside = self.rows.outside
        return session > self.memory.session and (outside is None or not outside[row])

    def _chain(self, session: int) -> Chain | None:
        return (
            self.memory.chain
            if session == self.memory.session
            else self.memory.earlier.get(session)
        )

    def _keep(self, session: int, chain: Chain, row: int) -> None:
        self.memory.earlier[session] = chain
        if len(self.memory.earlier) > EARLIER_MAX:
            # It may be the one just added: it is then too old to keep.
            for gap in self.memory.earlier.pop(min(self.memory.earlier)).gaps:
                self.gaps.forget(gap, row)

    def _fell(self, chain: Chain, seq: int, ts: int) -> bool:
        return seq * 2 < chain.last and ts - chain.last_ts > self.window_ns

    def _restart(self, row: int, seq: int, ts: int) -> None:
        """Begin the session's sequence again, which no new session explains."""
        former, day, offset = self.memory.chain, int(self.rows.days[row]), int(self.offsets[row])
        opens = self.calendar.open_of(day) if self.calendar else None
        self.ledger.reset(
            Run(
                day,
                seq,
                former.last,
                1,
                former.last_offset,
                former.last_ts,
                int(self.rows.received[row]),
                offset,
                ts,
            ),
            at_start=opens is not None and ts < opens,
        )
        for gap in former.gaps:
            self.gaps.forget(gap, row)
        self.memory.chain = self._begin(row)

    # One run of rows a..b-1: same session, strictly increasing, all in or all out of session.

    def _run(self, a: int, b: int) -> None:
        session = int(self.sessions[a])
        if self._advances(a, session) or self._chain(session) is None:
            self._one(a)  # begins a chain, which the rest of the run continues
            a += 1
        chain = self._chain(session)
        if chain is None:
            self.verdicts[a:b] = LATE
            return
        known = a + int(np.searchsorted(self.sequences[a:b], chain.last, side="right"))
        done = self._revisit(chain, a, known)
        chain = self._chain(session)  # another one, if a row of the run was a reset
        assert chain is not None
        self._advance(chain, done, b)

    def _one(self, row: int) -> int:
        seq, ts = int(self.sequences[row]), int(self.times[row])
        verdict = self._row(row, seq, ts, int(self.sessions[row]))
        self.verdicts[row] = verdict
        return verdict

    def _revisit(self, chain: Chain, a: int, b: int) -> int:
        """Judge rows at or below `chain.last`, up to a reset; return the first that is not."""
        if a == b:
            return b
        seq = self.sequences[a:b]
        late = np.zeros(b - a, np.bool_)
        intervals = [interval for gap in chain.gaps for interval in gap.missing]
        firsts, lasts = np.array(intervals, np.int64).reshape(-1, 2).T
        # Filling changes no other row's answer: a run has no value twice.
        at = np.searchsorted(firsts, seq, side="right") - 1
        if len(firsts):
            late = (at >= 0) & (seq <= lasts[at])
        if late.any() and self.gaps.meets_bound(seq[late], at[late], firsts, lasts):
            # What is forgotten on the way depends on the order of rows, and so do their verdicts.
            for row in range(a, b):
                if self._one(row) == RESET:
                    return row + 1
            return b
        fallen = False
        if chain is self.memory.chain:
            fell = (seq <= (chain.last - 1) // 2) & ~(late & (seq > chain.first))
            fell &= self.times[a:b] > chain.last_ts + self.window_ns
            fallen = bool(fell.any())
            if fallen:
                b = a + int(fell.argmax())
                seq, late = seq[: b - a], late[: b - a]
        unproven = late
        if chain.forgotten_through is not None:
            unproven = late | (seq <= chain.forgotten_through)
        self.verdicts[a:b] = np.where(unproven, LATE, DUPLICATE)
        if late.any():
            self.gaps.fill_many(chain, a + np.flatnonzero(late), firsts, lasts)
        if not fallen:
            return b
        self._one(b)  # a reset; the rest of the run lies above it
        return b + 1

    def _advance(self, chain: Chain, a: int, b: int) -> None:
        """Judge rows above `chain.last`."""
        if a == b:
            return
        seq = self.sequences[a:b]
        skipped = np.empty(b - a, np.bool_)
        skipped[0] = int(seq[0]) != chain.last + 1
        skipped[1:] = seq[1:] != seq[:-1] + 1
        self.verdicts[a:b] = np.where(skipped, GAP, OK)
        for i in np.flatnonzero(skipped).tolist():
            if i:
                self._reach(chain, a + i - 1)
            self.gaps.open(chain, a + i, int(seq[i]), int(self.times[a + i]))
        self._reach(chain, b - 1)

    def _reach(self, chain: Chain, row: int) -> None:
        chain.last, chain.last_ts = int(self.sequences[row]), int(self.times[row])
        chain.last_offset = int(self.offsets[row])
