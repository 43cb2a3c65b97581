"""How clients reach Kafka: addresses, TLS and SASL, from the settings. In one place for all.

librdkafka's clients (feeds, topics, verify) take `client_options`; Faust's aiokafka clients take
`ssl_context`, and user and password from the settings (`k2.app`).
"""

from __future__ import annotations

import ssl

from k2.errors import SettingError
from k2.settings import Settings

__all__ = ["client_options", "ssl_context"]


def client_options(settings: Settings) -> dict[str, str]:
    """Return librdkafka's options for the settings' broker; with secrets, so not for printing."""
    options = {"bootstrap.servers": settings.broker, "security.protocol": settings.broker_security}
    if settings.uses_sasl:
        options |= {
            "sasl.mechanism": settings.broker_sasl,
            "sasl.username": settings.broker_user,
            "sasl.password": settings.broker_password,
        }
    files = {
        "ssl.ca.location": settings.broker_ca,
        "ssl.certificate.location": settings.broker_cert,
        "ssl.key.location": settings.broker_key,
    }
    return options | {name: file for name, file in files.items() if file}


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what Python's clients encrypt with; None when the settings ask for no TLS.

    Raises:
        SettingError: a file is not what its setting says.
    """
    if not settings.uses_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.broker_ca or None)
    except OSError as exc:  # ssl.SSLError is one
        raise SettingError(f"broker_ca: {settings.broker_ca}: no PEM certificates: {exc}") from exc
    if settings.broker_cert:
        try:
            # Without a callback OpenSSL would ask the terminal for a passphrase.
            context.load_cert_chain(settings.broker_cert, settings.broker_key, lambda: "")
        except OSError as exc:
            raise SettingError(
                f"broker_cert, broker_key: {settings.broker_cert}, {settings.broker_key}: "
                f"no PEM certificate and its key without a passphrase: {exc}"
            ) from exc
    return context
