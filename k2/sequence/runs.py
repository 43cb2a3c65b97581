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
    places, resets = np.flatnonzero(verdicts == DUPLICATE), verdicts == RESET
    if not len(places):
        return None if resets.any() else run
    seq, days, since = rows.sequences[places], rows.days[places], np.cumsum(resets)[places]
    # `>` beside `+ 1`, because the highest int64 plus one is the lowest.
    follows = (seq[1:] == seq[:-1]) | ((seq[1:] == seq[:-1] + 1) & (seq[1:] > seq[:-1]))
    follows &= (days[1:] == days[:-1]) & (since[1:] == since[:-1])
    if run is not None and (since[0] or run.session != days[0]):
        run = None
    if run is not None and not run.last <= int(seq[0]) <= run.last + 1:
        run = None
    newest = _note("duplicates", rows, places, follows, run, ledger)
    return newest if since[-1] == resets.sum() else None


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
    starts = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    first, last = places[starts], places[np.append(starts[1:], len(places)) - 1]
    sequences = rows.sequences[places]
    columns = (
        rows.days[first],
        np.minimum.reduceat(sequences, starts),
        np.maximum.reduceat(sequences, starts),
        np.diff(starts, append=len(places)),
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
