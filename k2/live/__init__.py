"""What is known live of each symbol: its last record, its running session, its one-minute bars."""

from k2.live.forms import BARS, LATEST, Form
from k2.live.partition import Asked, Live
from k2.live.pieces import Piece, aggregate, merge
from k2.live.segments import BARS_AGE_MAX_NS
from k2.live.stored import Stored, stored

__all__ = [
    "BARS",
    "BARS_AGE_MAX_NS",
    "LATEST",
    "Asked",
    "Form",
    "Live",
    "Piece",
    "Stored",
    "aggregate",
    "merge",
    "stored",
]
