"""What is known live of each symbol: its last record, its running session, its one-minute bars."""

from k2.live.forms import BARS, LATEST, Form
from k2.live.partition import Asked, Live, stored_whole
from k2.live.pieces import Piece, aggregate, merge
from k2.live.segments import BARS_AGE_MAX_NS

__all__ = [
    "BARS",
    "BARS_AGE_MAX_NS",
    "LATEST",
    "Asked",
    "Form",
    "Live",
    "Piece",
    "aggregate",
    "merge",
    "stored_whole",
]
