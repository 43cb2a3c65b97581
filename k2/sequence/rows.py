"""The columns that the check goes by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Rows"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows in offset order, none of them replayed; times in ns, sessions in days."""

    sequences: Int64s
    times: Int64s
    received: Int64s
    days: Int32s  # each row's session
    sessions: Int32s  # of each row's chain: the same, or 0 where sequences never start again
    offsets: Int64s
    outside: Flags | None  # which rows are out of session; None: none is

    def __getitem__(self, own: slice | npt.NDArray[np.intp]) -> Rows:
        """Some of the rows."""
        return Rows(
            self.sequences[own],
            self.times[own],
            self.received[own],
            self.days[own],
            self.sessions[own],
            self.offsets[own],
            None if self.outside is None else self.outside[own],
        )
