"""What a web server limits by itself, before any view or middleware."""

from __future__ import annotations

from typing import Any

from k2.settings import Settings

__all__ = ["application_options"]

HEADERS_MAX = 64


def application_options(settings: Settings) -> dict[str, Any]:
    """Arguments of aiohttp's Application: sizes of requests, and how long one may take to come."""
    return {
        "client_max_size": settings.body_bytes_max,
        "handler_args": {
            "max_line_size": settings.header_bytes_max,
            "max_field_size": settings.header_bytes_max,
            "max_headers": HEADERS_MAX,
            # Also the time in which a request's headers must be there.
            "keepalive_timeout": settings.idle_timeout_ms / 1000.0,
        },
    }
