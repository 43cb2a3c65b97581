"""How fast K2 is from Kafka to committed Iceberg, beside three others on the same trades.

`make bench` runs, interleaved (run 1 of each, then run 2 of each, ...):

- K2: a real `k2 worker`: decode, sequence check, sort, commit;
- loop: a hand-written consumer with fastavro, pyarrow and pyiceberg, tuned, same table;
- stock Faust: one event a trade, one RocksDB write each; no Iceberg at all, which favours it;
- limit: a consumer that only counts messages; nothing here can be faster.

What the clock covers, for all four alike:

- start: the group has assigned the partitions. Faust, so K2 too, logs it before anything that
  follows from it (recovery of tables, seeking to Iceberg's offsets); the loop and the limit note
  it in `on_assign`, before the first fetch.
- end: the last row is committed. For K2 and the loop one observer outside of both sees the
  snapshot with all rows in the catalog, looking every 5 ms; for stock Faust the last event's
  RocksDB write has returned; for the limit the last message is counted.

`wall` is from the process's start to the same end: imports, table recovery and group join too.
Set-up (broker, topic, trades, Iceberg tables) and checks (row counts, offsets) are outside both.
Every contestant starts in a new process at offset 0, with a group, folder and tables of its own.
"""
