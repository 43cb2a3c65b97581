"""What the check needs of the settings, and how severe a finding is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from k2.settings import Settings

__all__ = ["LIMITS", "SEVERITIES", "Limits", "Rules", "severity"]

#: From the mildest to the worst. `info` is for the record, and no alert.
SEVERITIES = ("info", "warn", "page", "critical")

Limits = tuple[int, int]
#: A gap of fewer sequences than the first is a warning, of more than the second critical.
LIMITS: Limits = (10, 100)


@dataclass(frozen=True, slots=True)
class Rules:
    """How to check; an exchange that is not named trades in UTC dates and never closes."""

    zones: Mapping[str, str] = field(default_factory=dict)  # of the trading dates
    reset_window_ms: int = 60_000
    gaps_open_max: int = 1000
    calendars: Mapping[str, str] = field(default_factory=dict)  # codes, before zones
    session_margin_ms: int = 21_600_000
    never_reset: frozenset[str] = frozenset()  # their sequences go on from session to session
    by_channel: frozenset[str] = frozenset()  # one counter over all symbols of a partition
    limits: Mapping[str, Limits] = field(default_factory=dict)
    pausing: frozenset[str] = frozenset()  # a critical finding of these stops their partition

    def __post_init__(self) -> None:
        if self.gaps_open_max < 1:
            raise ValueError(f"gaps_open_max: {self.gaps_open_max} < 1")

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        return cls(
            zones=settings.exchange_zones,
            reset_window_ms=settings.reset_window_ms,
            gaps_open_max=settings.gaps_open_max,
            calendars=settings.exchange_calendars,
            session_margin_ms=settings.session_margin_ms,
            never_reset=settings.exchanges_never_reset,
            by_channel=settings.exchanges_by_channel,
            limits=settings.exchange_gap_limits,
            pausing=settings.exchanges_pausing,
        )


def severity(kind: str, count: int, limits: Limits = LIMITS) -> str:
    """Return the severity of a finding of `kind` (`k2.schemas.GAP_KINDS`), alike all its life.

    Only a gap and a reset within a session may mean that trades are lost; after a reset nobody
    can say how many. What came twice or at an odd hour is all there.
    """
    if kind == "reset":
        return "page"
    if kind != "gap" or count < limits[0]:
        return "warn"
    return "critical" if count > limits[1] else "page"
