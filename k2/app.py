"""The Faust app: `faust -A k2.app worker -l info`."""

from __future__ import annotations

from typing import Any

import faust
from faust.auth import SASLCredentials, SSLCredentials

from k2 import settings as k2_settings
from k2.errors import SettingError
from k2.keys import require_keys
from k2.process import ended, ending, settle
from k2.schemas import Kind
from k2.security import ssl_context
from k2.server import application_options
from k2.settings import Settings
from k2.transport import BatchSource, Fetched
from k2.transport.recovery import PatientTables

__all__ = ["App", "app", "batch_topic", "create_app"]


class BatchSchema(faust.Schema):
    """The value is already what the agent wants: a `Fetched`."""

    def loads_key(self, app: Any, message: Any, **kwargs: Any) -> None:
        return None

    def loads_value(self, app: Any, message: Any, **kwargs: Any) -> Fetched:
        fetched: Fetched = message.value
        return fetched


class _Told(faust.Settings):
    """Faust's settings as they are given.

    Faust has a variable for each, which would win over K2's: `APP_WEB_TABLES_ENABLED` opens a page
    that dumps the tables.
    """

    def getenv(self, env_name: str) -> Any:
        return None


class App(faust.App):
    """Faust's app with K2's settings and the source of its batch topics."""

    Settings = _Told
    settings: k2_settings.Settings  # `Settings` is Faust's here
    batch_source: BatchSource  # set by the agents' module, read by the transport

    async def on_first_start(self) -> None:
        if self.settings.role == "query":
            self.crash_reason = SettingError("role: query is no member of the group: `k2 worker`")
            raise self.crash_reason
        if self.conf.web_enabled:
            try:
                require_keys(self.settings, self.conf.web_bind)  # as Faust's own options say
            except SettingError as exc:
                self.crash_reason = exc  # of which the exit code tells
                raise
        self.conf.datadir.mkdir(parents=True, exist_ok=True)  # Faust makes only the last part
        await super().on_first_start()
        settle()

    async def stop(self) -> None:
        """Stop, or end the process: Faust can wait here for ever.

        For an answer of its consumer thread, which has ended before (seen when a crash fell into
        a rebalance). What is not committed is read again.
        """
        ending(self.settings)
        try:
            await super().stop()
        finally:
            ended(1 if self.crash_reason else 0)


def create_app(settings: Settings) -> App:
    """Make the app; nothing is started, no folder made, and no broker asked."""
    created = App(
        settings.group,
        broker=";".join(f"k2://{address.strip()}" for address in settings.broker.split(",")),
        broker_credentials=_credentials(settings),
        autodiscover=["k2.agents", "k2.web"],
        origin="k2",
        store="k2://",
        TableManager=PatientTables,
        datadir=str(settings.data / "tables" / settings.worker),
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        topic_disable_leader=True,
        consumer_max_fetch_size=settings.fetch_bytes_max,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=settings.session_timeout_ms / 1000.0,
        broker_heartbeat_interval=settings.session_timeout_ms / 20_000.0,
        broker_request_timeout=max(90.0, settings.session_timeout_ms / 1000.0 + 30.0),
        broker_commit_interval=1.0,
        # An event is a fetch of up to fetch_bytes_max: the byte budget bounds memory, not this.
        stream_buffer_maxsize=4,
        stream_wait_empty=True,
        stream_recovery_delay=0.0,
        # A state behind its changelog is advanced from the source by its watermark; and Tansu's
        # log ends lag by a batch, which this check takes for lost data.
        recovery_consistency_check=False,
        web_bind=settings.bind,
        web_host=settings.bind,
        web_port=settings.port,
        canonical_url=settings.url,
        web_application_options=application_options(settings),
        web_router_enabled=False,
        web_tables_enabled=False,
        web_stats_enabled=False,
        web_metrics_enabled=False,
        web_graph_enabled=False,
    )
    created.settings = settings
    return created


def _credentials(settings: Settings) -> Any:
    context = ssl_context(settings)
    if settings.uses_sasl:
        return SASLCredentials(
            username=settings.broker_user,
            password=settings.broker_password,
            ssl_context=context,
            mechanism=settings.broker_sasl,
        )
    return SSLCredentials(context) if context else None


app = create_app(k2_settings.load())


def batch_topic(kind: Kind) -> Any:
    """All exchanges' records of a kind as one channel; an event is a fetch of one partition."""
    names = (kind.topic(exchange) for exchange in app.settings.exchange_names)
    return app.topic(*names, schema=BatchSchema())
