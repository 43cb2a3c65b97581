"""Replay: trades and quotes of all symbols in event-time order, and on into what is live.

The way of a replay: `archive` says which rows there are, pinned by the next offset of every source
(`cursor`); `history` reads them in windows of time, `plan` chooses these; `digest` sums them up;
`pace` says when each is due, `play` sends them; `live` goes on behind them; `forms` writes them.
"""
