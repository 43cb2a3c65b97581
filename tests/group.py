"""Workers as members of a group without a broker: Faust's own assignor says who owns what."""

from __future__ import annotations

from aiokafka.cluster import ClusterMetadata

from k2.app import App
from k2.schemas import QUOTES, TRADES
from k2.settings import Settings
from k2.web.group import Group

TOPICS = (TRADES.topic("SIM"), QUOTES.topic("SIM"))
PARTITIONS = 4


class _Cluster(ClusterMetadata):
    """Topics of as many partitions each."""

    def __init__(self, partitions: int) -> None:
        super().__init__()
        self._number = partitions

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self._number))


def member(url: str, settings: Settings | None = None) -> App:
    """A worker that the others reach at a URL."""
    created = App("g", canonical_url=url, web_enabled=False)
    created.settings = settings or Settings()
    return created


def assign(*members: App, partitions: int = PARTITIONS) -> None:
    """Assign the partitions as a group does: the first is the leader, all are told."""
    told = {f"m{n}": app.assignor.metadata(set(TOPICS)) for n, app in enumerate(members)}
    given = members[0].assignor.assign(_Cluster(partitions), told)
    for n, app in enumerate(members):
        app.assignor.on_assignment(given[f"m{n}"])


def peers(app: App, partitions: int | None = PARTITIONS) -> Group:
    """What a member knows of the others."""
    return Group(app, TOPICS, lambda topic: partitions)
