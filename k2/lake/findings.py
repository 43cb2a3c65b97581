"""What an audit finds, in bounded memory: a few findings of each kind, and how many more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from k2.lake.offsets import Source

__all__ = ["LISTED_MAX", "Finding", "Findings", "Report", "SourceReport"]

#: Findings of one kind and source that are listed one by one; the rest is counted.
LISTED_MAX = 20

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked into.

    kind: missing_file | file_twice | offset_twice | hole | beyond_offset | no_offset | ahead |
    sequence_twice | row_count | orphan_files | orphan_metadata | more.
    """

    kind: str
    detail: str
    severity: Severity


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What is there of one Kafka partition; `first`, `last` are offsets, inclusive."""

    source: Source
    rows: int
    first: int | None
    last: int | None
    next_offset: int | None


@dataclass(slots=True)
class Report:
    """The outcome; `rows` and `files` are of records and rejects; `snapshot_id` is of trades."""

    snapshot_id: int | None
    rows: int = 0
    files: int = 0
    sources: list[SourceReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)

    def add(self, kind: str, detail: str, severity: Severity = "error") -> None:
        self.findings.append(Finding(kind, detail, severity))


class Findings:
    """Findings about one thing: of those with the same kind and severity the first ones."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._listed: list[Finding] = []
        self._counts: Counter[tuple[str, Severity]] = Counter()

    def add(self, kind: str, detail: str, severity: Severity = "error", count: int = 1) -> None:
        """Add `count` findings, of which `detail` describes the first."""
        if self._counts[kind, severity] < LISTED_MAX:
            self._listed.append(Finding(kind, detail, severity))
        self._counts[kind, severity] += count

    def take(self) -> list[Finding]:
        """Those listed, then a finding for each kind of which there are more."""
        listed = Counter((finding.kind, finding.severity) for finding in self._listed)
        more = [
            Finding(
                "more", f"{self._where}: {kind}: {count - listed[kind, severity]} more", severity
            )
            for (kind, severity), count in self._counts.items()
            if count > listed[kind, severity]
        ]
        return [*self._listed, *more]
