"""Does a log reach to where Iceberg goes on? And what to do if not."""

from __future__ import annotations

from k2.errors import LogTruncated
from k2.lake.offsets import Source
from k2.logs import Logs
from k2.settings import Settings

__all__ = ["remedy", "require_end"]


def require_end(settings: Settings, source: Source, stored: int) -> None:
    """Read where the log ends: Tansu names its last batch's first offset as the end.

    Kafka refuses a fetch from beyond the end; Tansu waits until the log has grown, and what came
    meanwhile would be skipped in silence.
    """
    logs = Logs(settings)
    try:
        log = logs.log(source)
    finally:
        logs.close()
    if log is not None and log.end < stored:
        raise LogTruncated(
            f"{source}: Iceberg has the log up to offset {stored}, but it ends at {log.end}: was "
            f"the topic made anew, or the log truncated? {remedy(source, 'end', '--force --yes')}"
        )


def remedy(source: Source, to: str, more: str = "--yes") -> str:
    """What an operator does about a log that does not reach; for the end of a message."""
    return (
        "`k2 offsets show` compares both; to go on without what is lost: `k2 offsets move "
        f"{source.topic} {source.partition} --to {to} --reason TEXT {more}`"
    )
