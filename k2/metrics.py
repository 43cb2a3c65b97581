"""K2's Prometheus metrics: prefix `k2_`, base units, never the symbol as a label."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "buffered_bytes",
    "buffered_rows",
    "commit_seconds",
    "commit_timestamp_seconds",
    "decode_seconds",
    "decoded_batches_total",
    "gaps_total",
    "inflight_bytes",
    "instruments_bad_total",
    "lag_records",
    "missing_total",
    "paused",
    "query_seconds",
    "records_total",
    "refused_total",
    "rejects_total",
    "silent_symbols",
    "silent_topics",
]

_COMMIT_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

records_total = Counter("k2_records_total", "Rows handed to a table's buffer.", ["table"])
rejects_total = Counter("k2_rejects_total", "Records that are rejects, by reason.", ["reason"])
gaps_total = Counter("k2_gaps_total", "Gaps in the sequence found.", ["exchange", "severity"])
missing_total = Counter(
    "k2_missing_total", "Sequences missing in those gaps.", ["exchange", "severity"]
)
commit_seconds = Histogram("k2_commit_seconds", "Write and commit.", buckets=_COMMIT_BUCKETS)
commit_timestamp_seconds = Gauge("k2_commit_timestamp_seconds", "When the last commit succeeded.")
buffered_rows = Gauge("k2_buffered_rows", "Rows waiting for a commit.")
buffered_bytes = Gauge("k2_buffered_bytes", "Arrow bytes waiting for or in a commit.")
inflight_bytes = Gauge("k2_inflight_bytes", "Bytes fetched and not yet decoded.")
lag_records = Gauge("k2_lag_records", "Records behind the log's end.", ["topic", "partition"])
paused = Gauge("k2_paused", "1: waits behind a critical finding.", ["topic", "partition"])
silent_symbols = Gauge(
    "k2_silent_symbols", "Symbols without a record for too long.", ["exchange", "kind"]
)
silent_topics = Gauge(
    "k2_silent_topics", "1: no record in any of this worker's partitions.", ["exchange", "kind"]
)
decode_seconds = Histogram("k2_decode_seconds", "Decoding of one fetch.")
decoded_batches_total = Counter(
    "k2_decoded_batches_total", "Record batches decoded, as a block or by records.", ["path"]
)
instruments_bad_total = Counter(
    "k2_instruments_bad_total", "Values on the topic of instruments that are none."
)
refused_total = Counter("k2_refused_total", "Requests refused, by why.", ["reason"])
query_seconds = Histogram("k2_query_seconds", "A query, until its first rows.", ["resource"])
