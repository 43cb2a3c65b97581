"""What a query and a replay cost over HTTP, beside bare DuckDB over the same files.

`make bench-queries` makes a table of simulated trading days through K2's own sink, starts a broker
and a real `k2 worker` over it, and asks:

- point: one symbol, one minute, all columns, in order;
- bars: one symbol's day in bars of a minute;
- scan: ten minutes of all symbols, all columns, in order;
- sql: an aggregate over the whole table, over `POST /v1/sql`.

Three processes: the worker, the client (this one), and bare DuckDB. Each question is asked three
ways, one after the other, which of them first changes from question to question:

- K2: over HTTP on a connection that is kept open, from the request to an Arrow table in the client;
- bare: DuckDB's `read_parquet` over all files of the snapshot, in a warm database, to Arrow;
- told: the same over only those files that hold the answer, which were found outside the clock.

So what K2 does beyond DuckDB's reading (HTTP, planning against the newest snapshot, what is known
of gaps, another process for SQL) is K2's less told's; it must do it within half of that and 5 ms.

Then `CLIENTS` ask at once, over as many connections, and as many cursors of bare DuckDB; and the
whole table is replayed to a client that only reads.

Before a clock starts, answers of both sides are compared, row by row; while it runs, the number of
rows; a replay's end says how many trades it had and their digest, the same in all formats.
"""
