"""What the columns of answers mean, in a sentence each."""

from __future__ import annotations

__all__ = ["SAY"]

_TRADE = {
    "exchange": "Code of the exchange.",
    "symbol": "What is traded, as the venue names it.",
    "session": "The exchange's date of the trading session.",
    "event_time": "`ts_event` in microseconds.",
    "sequence": "The venue's number, counted by symbol and session.",
    "ts_event": "When it happened at the venue; ns since the epoch, UTC.",
    "ts_recv": "When the feed received it; ns since the epoch, UTC.",
    "price": "Exact decimal.",
    "size": "Exact decimal.",
    "side": "The aggressor's side.",
    "trade_id": "The venue's name of the trade.",
    "conditions": "Codes of the venue, as it has them.",
    "venue": "Where it was traded.",
    "verdict": "What the sequence check said of it.",
}
_QUOTE = {
    "bid_price": "Best bid; null: nobody bids.",
    "bid_size": "Size at the best bid.",
    "ask_price": "Best ask; null: nobody asks.",
    "ask_size": "Size at the best ask.",
}
_SOURCE = {
    "kafka_cluster": "Where it came from: the cluster's id.",
    "kafka_topic": "Where it came from: the topic.",
    "kafka_partition": "Where it came from: the partition.",
    "kafka_offset": "Where it came from: the offset.",
    "ingest_time": "When K2 wrote it.",
}
_QUOTED = {
    "quote_ts_event": "`ts_event` of the quote that prevailed; null: none did.",
    "spread": "`ask_price` less `bid_price`.",
    "mid": "Between bid and ask.",
    "side_tick": "Side by the tick rule: against the last different price.",
}
_BAR = {
    "start": "Begin of the bar; ns since the epoch, UTC.",
    "open": "First price.",
    "high": "Highest price.",
    "low": "Lowest price.",
    "close": "Last price.",
    "volume": "Sum of the sizes.",
    "vwap": "Average price, by size; null: all sizes are 0.",
    "trades": "How many trades.",
}
_SYMBOL = {
    "first_ts_event": "`ts_event` of the first trade, ns.",
    "last_ts_event": "`ts_event` of the last record, ns.",
    "sessions": "How many sessions.",
}
_SNAPSHOT = {
    "table": "Name of the table.",
    "snapshot_id": "Id of the snapshot.",
    "parent_id": "Id of the one before.",
    "committed_at": "When it was committed, ns.",
    "operation": "Iceberg's word for what was done.",
    "rows": "Rows in all.",
    "added": "Rows that it added.",
    "files": "Data files in all.",
    "valid_through": "ns: all that Kafka had before is in; null: not known.",
}
_GAP = {
    "gap_id": "Name of the finding; the same in all its revisions.",
    "kind": "What was found.",
    "status": "How it stands.",
    "severity": "How bad it is.",
    "missing_first": "First sequence that is missing.",
    "missing_last": "Last sequence that is missing.",
    "count": "How many were missing, or were found.",
    "remaining_count": "How many are missing still.",
    "remaining": "Which are missing still, as ranges; both ends count.",
    "from_offset": "Offset of the record before.",
    "from_ts": "`ts_event` of the record before, ns.",
    "to_offset": "Offset of the record behind.",
    "to_ts": "`ts_event` of the record behind, ns.",
    "seen_at": "When K2 saw it, ns.",
    "filled_at": "When the last missing record came, ns.",
    "revision": "Counts what was told of the finding.",
    "operator": "Who accepted it.",
    "reason": "Why it was accepted.",
}
_INSTRUMENT = {
    "name": "Its name in full.",
    "isin": "ISIN.",
    "company_id": "The company's number, by whoever gives it away.",
    "tick_size": "Least step of a price.",
    "lot_size": "Least step of a size.",
    "listed": "First day of trading.",
    "delisted": "First day without.",
}

#: By the name of a column, which means the same wherever it is found.
SAY = {
    **_TRADE, **_QUOTE, **_SOURCE, **_QUOTED, **_BAR, **_SYMBOL, **_SNAPSHOT, **_GAP, **_INSTRUMENT,
}  # fmt: skip
