"""The sequence check: did every trade of a symbol arrive, and which did not?"""

from k2.sequence.check import Checked, Key, Symbols, check
from k2.sequence.fold import EARLIER_MAX
from k2.sequence.ledger import Change, gap_rows, stop
from k2.sequence.rules import LIMITS, SEVERITIES, Rules, severity
from k2.sequence.state import Chain, Gap, Memory, Run, SymbolState, header_columns

__all__ = [
    "EARLIER_MAX",
    "LIMITS",
    "SEVERITIES",
    "Chain",
    "Change",
    "Checked",
    "Gap",
    "Key",
    "Memory",
    "Rules",
    "Run",
    "SymbolState",
    "Symbols",
    "check",
    "gap_rows",
    "header_columns",
    "severity",
    "stop",
]
