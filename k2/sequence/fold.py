"""The fold of one symbol's rows into its state.

Rows are folded in runs (same session, strictly increasing): a long run costs numpy time, so that
a replayed topic is not paid for row by row; a short one is folded row by row. Both ways give the
same, which a property test holds.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from k2.schemas import VERDICTS
from k2.sequence.state import Chain, Gap, Rules, SymbolState

__all__ = ["EARLIER_MAX", "OK", "Rows", "fold"]

FIRST, OK, GAP, LATE, RESET, DUPLICATE = range(len(VERDICTS))

#: Former sessions whose chains are kept, so that their late rows can still be judged.
EARLIER_MAX = 4
#: Below this many rows a run is cheaper row by row than through numpy.
RUN_ROWS_MIN = 32

_INT64_MAX = 2**63 - 1
_interval_first = itemgetter(0)

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Verdicts = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows in offset order, none of them replayed; times in ns, sessions in days."""

    sequences: Int64s
    times: Int64s
    sessions: Int32s
    offsets: Int64s

    def __getitem__(self, own: slice | Int64s) -> Rows:
        """Some of the rows."""
        return Rows(self.sequences[own], self.times[own], self.sessions[own], self.offsets[own])


def fold(
    state: SymbolState | None, key: tuple[str, str], rows: Rows, rules: Rules
) -> tuple[Verdicts, list[Gap], SymbolState]:
    """Fold one symbol's n >= 1 rows into its state.

    Args:
        state: before the rows; None if the symbol was never seen. Not changed.
        key: (exchange, symbol), for the gaps found.
        rules: reset window and bound of the open gaps.

    Returns:
        n verdicts, the gaps found in row order, and the state after the rows.
    """
    folding = _Fold(state, key, rows, rules)
    return folding.verdicts, folding.found, folding.state


class _Fold:
    """One run of `fold`; a row is named by its index in the arrays."""

    def __init__(
        self, state: SymbolState | None, key: tuple[str, str], rows: Rows, rules: Rules
    ) -> None:
        self.key, self.rules = key, rules
        self.window_ns = rules.reset_window_ms * 1_000_000
        self.sequences, self.times = rows.sequences, rows.times
        self.sessions, self.offsets = rows.sessions, rows.offsets
        self.found: list[Gap] = []
        self.verdicts = np.empty(len(rows.sequences), np.uint8)
        begin = 0
        if state is None:
            self.verdicts[0] = FIRST
            first = int(rows.sequences[0])
            self.state = SymbolState(
                first,
                first,
                Chain.unseen_below(first),
                session=int(rows.sessions[0]),
                last_ts=int(rows.times[0]),
                offset=int(rows.offsets[0]),
            )
            begin = 1
        else:
            self.state = state.copy()
        self._runs(begin)
        self._count()

    def _runs(self, begin: int) -> None:
        seq, days = self.sequences[begin:], self.sessions[begin:]
        broken = (days[1:] != days[:-1]) | (seq[1:] <= seq[:-1])
        starts = [begin, *(np.flatnonzero(broken) + (begin + 1)).tolist(), len(self.sequences)]
        lists: tuple[list[int], list[int], list[int]] | None = None
        for a, b in pairwise(starts):
            if b - a >= RUN_ROWS_MIN:
                self._run(a, b)
                continue
            if lists is None:  # once a symbol, not once a run: interleaved feeds make short runs
                lists = self.sequences.tolist(), self.times.tolist(), self.sessions.tolist()
            for row in range(a, b):
                self.verdicts[row] = self._row(row, lists[0][row], lists[1][row], lists[2][row])

    def _count(self) -> None:
        state, counts = self.state, np.bincount(self.verdicts, minlength=len(VERDICTS)).tolist()
        state.offset = int(self.offsets[-1])
        state.rows += len(self.verdicts)
        state.gaps_found += counts[GAP]
        state.late += counts[LATE]
        state.duplicates += counts[DUPLICATE]
        state.resets += counts[RESET]

    # One row.

    def _row(self, row: int, seq: int, ts: int, session: int) -> int:
        state = self.state
        if session > state.session:
            former = Chain(state.first, state.last, state.gaps, state.forgotten_through)
            self._keep(state.session, former)
            state.session = session
            return self._restart(seq, ts)
        chain = self._chain(session)
        if chain is None:
            # A session never heard of, or too long ago: nothing proves that the row was seen.
            self._keep(session, Chain(seq, seq, Chain.unseen_below(seq)))
            return LATE
        if seq > chain.last:
            verdict = OK if seq == chain.last + 1 else self._open(chain, row, seq, ts, session)
            chain.last = seq
            if chain is state:
                state.last_ts = ts
            return verdict
        at = bisect_right(chain.gaps, seq, key=_interval_first) - 1
        unseen = at >= 0 and seq <= chain.gaps[at][1]
        fell = chain is state and seq * 2 < chain.last and ts - state.last_ts > self.window_ns
        # What is missing is waited for; what was before the first row is not.
        if fell and not (unseen and seq > chain.first):
            return self._restart(seq, ts)
        if unseen:
            self._fill(chain, at, seq)
            return LATE
        # Forgotten gaps are not provably seen, and a row twice is better than a row lost.
        if chain.forgotten_through is not None and seq <= chain.forgotten_through:
            return LATE
        return DUPLICATE

    def _chain(self, session: int) -> Chain | None:
        return self.state if session == self.state.session else self.state.earlier.get(session)

    def _keep(self, session: int, chain: Chain) -> None:
        earlier = self.state.earlier
        earlier[session] = chain
        if len(earlier) > EARLIER_MAX:
            del earlier[min(earlier)]  # may be the one just added: it is then too old to keep

    def _restart(self, seq: int, ts: int) -> int:
        state = self.state
        state.first, state.last, state.last_ts = seq, seq, ts
        state.gaps, state.forgotten_through = Chain.unseen_below(seq), None
        return RESET

    def _open(self, chain: Chain, row: int, seq: int, ts: int, session: int) -> int:
        first, last = chain.last + 1, seq - 1
        self.found.append(Gap(*self.key, session, first, last, int(self.offsets[row]), ts))
        # orjson holds 64 bits, and one absurd sequence must not stop the worker.
        self.state.missing = min(self.state.missing + last - first + 1, _INT64_MAX)
        chain.gaps.append((first, last))
        self._bound(chain)
        return GAP

    def _fill(self, chain: Chain, at: int, seq: int) -> None:
        first, last = chain.gaps[at]
        parts = ((first, seq - 1), (seq + 1, last))
        chain.gaps[at : at + 1] = [part for part in parts if part[0] <= part[1]]
        self._bound(chain)

    def _bound(self, chain: Chain) -> None:
        surplus = len(chain.gaps) - self.rules.gaps_open_max
        if surplus > 0:
            # The lowest are the oldest; all that remain lie above them.
            forgotten = chain.gaps[:surplus]
            chain.forgotten_through = forgotten[-1][1]
            self.state.gaps_forgotten += sum(last > chain.first for _, last in forgotten)
            del chain.gaps[:surplus]

    # One run of rows a..b-1: same session, strictly increasing.

    def _run(self, a: int, b: int) -> None:
        session = int(self.sessions[a])
        if session > self.state.session or self._chain(session) is None:
            self._one(a)  # begins a chain, which the rest of the run continues
            a += 1
        chain = self._chain(session)
        if chain is None:
            self.verdicts[a:b] = LATE
            return
        known = a + int(np.searchsorted(self.sequences[a:b], chain.last, side="right"))
        done = self._revisit(chain, a, known)
        if done < known:
            self._one(done)  # a reset; the rest of the run lies above it
            done += 1
        self._advance(chain, done, b, session)

    def _one(self, row: int) -> None:
        seq, ts = int(self.sequences[row]), int(self.times[row])
        self.verdicts[row] = self._row(row, seq, ts, int(self.sessions[row]))

    def _revisit(self, chain: Chain, a: int, b: int) -> int:
        """Judge rows at or below `chain.last`; return the row that resets the chain, else b."""
        if a == b:
            return b
        seq = self.sequences[a:b]
        late = np.zeros(b - a, np.bool_)
        firsts, lasts = np.array(chain.gaps, np.int64).reshape(-1, 2).T
        # Filling changes no other row's answer (a run has no value twice), and what is forgotten
        # meanwhile lies below the row at hand: the gaps as they are now answer for the whole run.
        at = np.searchsorted(firsts, seq, side="right") - 1
        if len(firsts):
            late = (at >= 0) & (seq <= lasts[at])
        if chain is self.state:
            fell = (seq <= (chain.last - 1) // 2) & ~(late & (seq > chain.first))
            fell &= self.times[a:b] > self.state.last_ts + self.window_ns
            if fell.any():
                b = a + int(fell.argmax())
                seq, late, at = seq[: b - a], late[: b - a], at[: b - a]
        unproven = late
        if chain.forgotten_through is not None:
            unproven = late | (seq <= chain.forgotten_through)
        self.verdicts[a:b] = np.where(unproven, LATE, DUPLICATE)
        if late.any():
            self._fill_many(chain, seq[late], at[late], firsts, lasts)
        return b

    def _fill_many(
        self, chain: Chain, seq: Int64s, at: npt.NDArray[np.intp], firsts: Int64s, lasts: Int64s
    ) -> None:
        left = seq != firsts[at]
        left[1:] &= seq[1:] != seq[:-1] + 1
        grown = left.astype(np.int64) + (seq != lasts[at]) - 1
        if len(firsts) + int(np.cumsum(grown).max()) > self.rules.gaps_open_max:
            # The bound is met on the way: what is forgotten then depends on the order of rows.
            for value in seq.tolist():
                place = bisect_right(chain.gaps, value, key=_interval_first) - 1
                self._fill(chain, place, value)
            return
        begins = np.sort(np.concatenate((firsts, seq + 1)))
        ends = np.sort(np.concatenate((lasts, seq - 1)))
        some = begins <= ends
        chain.gaps = list(zip(begins[some].tolist(), ends[some].tolist(), strict=True))

    def _advance(self, chain: Chain, a: int, b: int, session: int) -> None:
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
                chain.last = int(seq[i - 1])
            self._open(chain, a + i, int(seq[i]), int(self.times[a + i]), session)
        chain.last = int(seq[-1])
        if chain is self.state:
            self.state.last_ts = int(self.times[b - 1])
