"""What is known live of each symbol: its last record, its running session, its one-minute bars."""

from k2.live.forms import BARS, LATEST, Form
from k2.live.partition import Asked, Live, torn
from k2.live.pieces import Piece, aggregate, merge

__all__ = ["BARS", "LATEST", "Asked", "Form", "Live", "Piece", "aggregate", "merge", "torn"]
