"""Runs of duplicates and of records out of session: one finding each, however long.

A run of duplicates repeats sequences one after the other (or one of them again and again),
whatever new records stand in between: a feed that is connected twice makes one run a symbol, not
one a record. A run out of session ends with the next record that is in session. Both end with
their session.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from k2.schemas import VERDICTS
from k2.sequence.ledger import Ledger
from k2.sequence.rows import Rows
from k2.sequence.state import Run

__all__ = ["extend_outside", "extend_repeated"]

RESET, DUPLICATE = VERDICTS.index("reset"), VERDICTS.index("duplicate")

Places = npt.NDArray[np.intp]


def extend_repeated(
    run: Run | None, rows: Rows, verdicts: npt.NDArray[np.uint8], ledger: Ledger
) -> Run | None:
    """Note the runs of duplicates among one counter's rows.

    Args:
        run: the one that the rows may go on with.

    Returns:
        The one that the next rows may go on with.
    """
    places, resets = np.flatnonzero(verdicts == DUPLICATE), np.flatnonzero(verdicts == RESET)
    if not len(places):
        return None if len(resets) else run
    seq, days = rows.sequences[places], rows.days[places]
    # `>` beside `+ 1`, because the highest int64 plus one is the lowest.
    follows = (seq[1:] == seq[:-1]) | ((seq[1:] == seq[:-1] + 1) & (seq[1:] > seq[:-1]))
    follows &= days[1:] == days[:-1]
    if len(resets):
        since = np.searchsorted(resets, places)
        follows &= since[1:] == since[:-1]
        run = None if since[0] else run
    if run is not None and not (run.session == days[0] and run.last <= seq[0] <= run.last + 1):
        run = None
    newest = _note("duplicates", rows, places, follows, run, ledger)
    return None if len(resets) and resets[-1] > places[-1] else newest


def extend_outside(
    run: Run | None, rows: Rows, verdicts: npt.NDArray[np.uint8], ledger: Ledger
) -> Run | None:
    """Note the runs out of session among one counter's rows, as `extend_repeated` does."""
    # A table of trades has no duplicates, and a state made from it must know of the same runs.
    new = np.flatnonzero(verdicts != DUPLICATE)
    if not len(new):
        return run
    outside = np.zeros(len(new), np.bool_) if rows.outside is None else rows.outside[new]
    places, days = new[outside], rows.days[new][outside]
    if not len(places):
        return None
    between = np.cumsum(~outside)[outside]
    follows = (days[1:] == days[:-1]) & (between[1:] == between[:-1])
    if run is not None and not (outside[0] and run.session == days[0]):
        run = None
    newest = _note("out_of_session", rows, places, follows, run, ledger)
    return newest if outside[-1] else None


def _note(
    kind: str,
    rows: Rows,
    places: Places,
    follows: npt.NDArray[np.bool_],
    run: Run | None,
    ledger: Ledger,
) -> Run:
    """Cut the rows at `places` where one does not follow; the first run goes on with `run`.

    Returns:
        The last run.
    """
    cuts = np.flatnonzero(~follows)
    starts, ends = np.zeros(len(cuts) + 1, np.intp), np.empty(len(cuts) + 1, np.intp)
    starts[1:], ends[:-1], ends[-1] = cuts + 1, cuts, len(places) - 1
    first, last, sequences = places[starts], places[ends], rows.sequences[places]
    columns = (
        rows.days[first],
        np.minimum.reduceat(sequences, starts),
        np.maximum.reduceat(sequences, starts),
        ends - starts + 1,
        rows.offsets[first],
        rows.times[first],
        rows.received[first],
        rows.offsets[last],
        rows.times[last],
    )
    for found in map(Run._make, zip(*(column.tolist() for column in columns), strict=True)):
        newest = found
        if run is not None:
            newest = run._replace(
                first=min(run.first, found.first),
                last=max(run.last, found.last),
                records=run.records + found.records,
                to_offset=found.to_offset,
                to_ts=found.to_ts,
            )
            run = None
        ledger.run(kind, newest)
    return newest
