"""PyIceberg's REST catalog with a limit to its patience: by itself it waits for ever."""

from __future__ import annotations

from typing import Any

import pyiceberg.catalog.rest
from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter

__all__ = ["TIMEOUT_PROPERTY", "RestCatalog"]

#: A catalog's property: seconds of silence, as text like all of them.
TIMEOUT_PROPERTY = "k2.timeout-s"


class _Limited(HTTPAdapter):
    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        return super().send(request, *args, **{**kwargs, "timeout": self._timeout_s})


class RestCatalog(pyiceberg.catalog.rest.RestCatalog):
    """Gives a request up when nothing was heard for so long, also while its answer comes.

    Whether the catalog has done what it was asked for is then unknown.
    """

    def _config_headers(self, session: Session) -> None:
        # The first that is done with a new session: before it is used to get a token.
        super()._config_headers(session)
        adapter = _Limited(float(self.properties[TIMEOUT_PROPERTY]))
        session.mount("http://", adapter)
        session.mount("https://", adapter)
