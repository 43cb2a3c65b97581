"""The sequence check: did every trade of a symbol arrive, and which did not?"""

from k2.sequence.check import Checked, check, sessions_of
from k2.sequence.fold import EARLIER_MAX
from k2.sequence.state import Chain, Gap, Rules, SymbolState

__all__ = ["EARLIER_MAX", "Chain", "Checked", "Gap", "Rules", "SymbolState", "check", "sessions_of"]
