"""Which trades count, by the conditions that the venue gave them: auctions, off-market, codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k2.errors import BadQuery
from k2.settings import Settings

__all__ = ["ALL", "AUCTION", "OFF_MARKET", "REGULAR", "Choice", "choose"]

AUCTION, OFF_MARKET, REGULAR = "auction", "off-market", "regular"

#: A feed may give a trade several codes; commas, semicolons, bars or blanks stand between.
_CODES = "string_split_regex(coalesce(conditions, ''), '[,;| ]+')"


@dataclass(frozen=True, slots=True)
class Choice:
    """A condition over rows of trades as SQL, with its parameters; empty: every trade counts."""

    sql: str
    parameters: Mapping[str, Any]

    def of(self, source: str) -> str:
        """The rows of `source`, a SELECT, that count."""
        return f"SELECT * FROM ({source}) WHERE {self.sql}" if self.sql else source


ALL = Choice("", {})


def choose(terms: Sequence[str] | None, settings: Settings) -> Choice:
    """Read what was asked for: terms of which a trade must fit one, and of `-terms` none.

    A term is `auction`, `off-market` (the codes that the settings name for each exchange),
    `regular` (neither) or a code as the venue has it.

    Raises:
        BadQuery: a term names nothing.
    """
    chosen = _Chosen(settings)
    for term in terms or ():
        if term in ("", "-"):
            raise BadQuery("conditions", f"{term!r} names no condition")
        chosen.add(term)
    return Choice(chosen.sql, chosen.parameters)


class _Chosen:
    def __init__(self, settings: Settings) -> None:
        self._classes = {
            AUCTION: settings.exchange_auction_conditions,
            OFF_MARKET: settings.exchange_off_market_conditions,
        }
        self._in: list[str] = []
        self._out: list[str] = []
        self.parameters: dict[str, Any] = {}

    @property
    def sql(self) -> str:
        wanted = [f"({' OR '.join(self._in)})"] if self._in else []
        return " AND ".join([*wanted, *(f"NOT {test}" for test in self._out)])

    def add(self, term: str) -> None:
        name = term.removeprefix("-")
        if name == REGULAR:
            test = f"NOT ({self._class(AUCTION)} OR {self._class(OFF_MARKET)})"
        elif name in self._classes:
            test = self._class(name)
        else:
            test = f"list_contains({_CODES}, {self._parameter(name)})"
        (self._out if term != name else self._in).append(f"({test})")

    def _class(self, name: str) -> str:
        """Whether a trade has one of the codes that its own exchange has for a class."""
        tests = [
            f"exchange = {self._parameter(exchange)} "
            f"AND list_has_any({_CODES}, {self._parameter(codes)})"
            for exchange, codes in self._classes[name].items()
        ]
        return f"({' OR '.join(f'({test})' for test in tests) or 'false'})"

    def _parameter(self, value: Any) -> str:
        name = f"condition_{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"
