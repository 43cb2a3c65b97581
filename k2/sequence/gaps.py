"""Gaps of a chain that open, are filled and are forgotten, while rows are folded."""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from k2.sequence.ledger import Ledger
from k2.sequence.rows import Rows
from k2.sequence.state import INT64_MAX, Chain, Gap, Interval, Memory

__all__ = ["OpenGaps", "find"]

Int64s = npt.NDArray[np.int64]

_first = itemgetter(0)


class OpenGaps:
    """Changes the gaps of a counter's chains, and tells the ledger.

    Args:
        rows: those being folded; a row is named by its index in them.
        open_max: intervals that a chain's gaps may have together.
    """

    def __init__(self, rows: Rows, memory: Memory, ledger: Ledger, open_max: int) -> None:
        self.rows, self.memory, self.ledger, self.open_max = rows, memory, ledger, open_max
        self.sequences, self.offsets = rows.sequences, rows.offsets
        #: Gaps that were filled in part, by what names them, with the row that did it last.
        self.progress: dict[tuple[int, int, int], tuple[Gap, int]] = {}

    def end(self) -> None:
        """Tell of the gaps that the rows filled in part: once each, not once a row."""
        for gap, row in self.progress.values():
            self.ledger.gap(gap, "partly_filled", int(self.offsets[row]))

    def open(self, chain: Chain, row: int, seq: int, ts: int) -> None:
        first, last = chain.last + 1, seq - 1
        gap = Gap(
            first,
            last,
            ((first, last),),
            int(self.rows.days[row]),
            chain.last_offset,
            chain.last_ts,
            int(self.offsets[row]),
            ts,
            int(self.rows.received[row]),
        )
        self.ledger.gap(gap, "open", gap.offset)
        # orjson holds 64 bits, and one absurd sequence must not stop the worker.
        self.memory.missing = min(self.memory.missing + last - first + 1, INT64_MAX)
        chain.gaps.append(gap)
        chain.width += 1
        self._bound(chain, row)

    def fill(self, chain: Chain, at: int, part: int, seq: int, row: int) -> None:
        missing = chain.gaps[at].missing
        first, last = missing[part]
        parts = tuple(p for p in ((first, seq - 1), (seq + 1, last)) if p[0] <= p[1])
        self._filled(chain, at, (*missing[:part], *parts, *missing[part + 1 :]), row)
        self._bound(chain, row)

    def _filled(self, chain: Chain, at: int, missing: tuple[Interval, ...], row: int) -> None:
        """Some of the gap came, last of it with the row; `missing` is what did not."""
        received = int(self.rows.received[row]) if chain.gaps[at].reported else None
        chain.width += len(missing) - len(chain.gaps[at].missing)
        gap = chain.gaps[at]._replace(missing=missing, filled_at=received)
        if missing:
            chain.gaps[at] = gap
            if gap.reported:
                self.progress[_name(gap)] = gap, row
        else:
            del chain.gaps[at]
            if gap.reported:
                self.progress.pop(_name(gap), None)
                self.ledger.gap(gap, "filled", int(self.offsets[row]))

    def forget(self, gap: Gap, row: int) -> None:
        if gap.reported:
            self.progress.pop(_name(gap), None)
            self.ledger.gap(gap, "forgotten", int(self.offsets[row]))
            self.memory.gaps_forgotten += 1

    def _bound(self, chain: Chain, row: int) -> None:
        while chain.width > self.open_max:
            # The lowest is the oldest; all that remain lie above it.
            gap = chain.gaps.pop(0)
            chain.width -= len(gap.missing)
            chain.forgotten_through = gap.missing[-1][1]
            self.forget(gap, row)

    def meets_bound(
        self, seq: Int64s, at: npt.NDArray[np.intp], firsts: Int64s, lasts: Int64s
    ) -> bool:
        """Whether there are too many intervals at some time while `seq` fill them one by one."""
        left = seq != firsts[at]
        left[1:] &= seq[1:] != seq[:-1] + 1
        grown = left.astype(np.int64) + (seq != lasts[at]) - 1
        return len(firsts) + int(np.cumsum(grown).max()) > self.open_max

    def fill_many(
        self, chain: Chain, rows: npt.NDArray[np.intp], firsts: Int64s, lasts: Int64s
    ) -> None:
        """Fill with rows of missing sequences what the intervals firsts..lasts miss."""
        seq = self.sequences[rows]
        begins = np.sort(np.concatenate((firsts, seq + 1)))
        ends = np.sort(np.concatenate((lasts, seq - 1)))
        some = begins <= ends
        begins, ends = begins[some], ends[some]
        gaps = np.array([gap.first for gap in chain.gaps], np.int64)
        # Upwards each gap's intervals and rows stand together, since no interval spans two gaps.
        owners = np.searchsorted(gaps, seq, side="right") - 1
        lives = np.searchsorted(gaps, begins, side="right") - 1
        for at in np.unique(owners)[::-1].tolist():
            low, high = np.searchsorted(lives, [at, at + 1]).tolist()
            missing = tuple(zip(begins[low:high].tolist(), ends[low:high].tolist(), strict=True))
            row = int(rows[np.searchsorted(owners, at, side="right") - 1])
            self._filled(chain, at, missing, row)


def find(gaps: list[Gap], seq: int) -> Interval | None:
    """Return (index of the gap, index of its interval) that misses `seq`."""
    at = bisect_right(gaps, seq, key=_first) - 1
    if at < 0 or seq > gaps[at].last:
        return None
    missing = gaps[at].missing
    part = bisect_right(missing, seq, key=_first) - 1
    if part < 0 or seq > missing[part][1]:
        return None
    return at, part


def _name(gap: Gap) -> tuple[int, int, int]:
    return gap.session, gap.first, gap.offset
