"""Which format an answer is given in: `format=`, or the Accept header."""

from __future__ import annotations

from k2.errors import BadQuery

__all__ = ["MEDIA_TYPES", "choose", "weigh"]

MEDIA_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
_BY_TYPE = {media: name for name, media in MEDIA_TYPES.items()} | {
    "*/*": "json",
    "application/*": "json",
    "text/*": "csv",
    "application/jsonl": "ndjson",
}


def choose(wanted: str | None, accept: str) -> str | None:
    """The format of `format=`, else the best of the Accept header; None if nothing fits it.

    Raises:
        BadQuery: `format` is not one of them.
    """
    if wanted is not None:
        if wanted not in MEDIA_TYPES:
            raise BadQuery("format", f"{wanted!r} is not one of {', '.join(MEDIA_TYPES)}")
        return wanted
    if not accept.strip():
        return "json"
    ranked = sorted((weigh(part) for part in accept.split(",")), key=lambda pair: -pair[1])
    return next((_BY_TYPE[media] for media, q in ranked if q > 0 and media in _BY_TYPE), None)


def weigh(part: str) -> tuple[str, float]:
    """A part of an Accept header, or of its like, and its weight."""
    media, *rest = (piece.strip().lower() for piece in part.split(";"))
    weight = next((piece[2:] for piece in rest if piece.startswith("q=")), "1")
    try:
        return media, float(weight)
    except ValueError:
        return media, 0.0
