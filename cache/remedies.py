"""Remedies: what to change about the settings when Redis is there and does not let us in. Told by whoever asks first.

What Redis and TLS say of it lies in the causes of a TierError. None of it holds a key, a value or a password.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from redis.exceptions import AuthenticationError, NoPermissionError

_HUNG_UP = ("Connection closed by server", "Connection reset by peer")
_UNANSWERED = "Timeout connecting to server"
_UNTRUSTED = ("CERTIFICATE_REQUIRED", "UNKNOWN_CA", "CERTIFICATE_EXPIRED", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN")


@dataclass(frozen=True, slots=True)
class Remedy:
    """A setting, what is wrong with it, and what to do."""

    setting: str
    what: str
    change: str


_INTRODUCE = Remedy(
    "cache.l2.tls.certificate",
    "it wants to see a certificate of ours that it believes",
    "name one of its tls-ca-cert-file in cache.l2.tls.certificate and key, or set tls-auth-clients no",
)


def remedy_for(error: BaseException, *, encrypted: bool) -> Remedy | None:
    """`error` came of the first words to a server over a line that is `encrypted` or not. None: it has other causes."""
    for cause in _causes(error):
        text = str(cause)
        match cause:
            case AuthenticationError():
                return Remedy(
                    "cache.l2.password",
                    "it refuses the user or the password",
                    "put the right ones into cache.l2.username and cache.l2.password or password_file, or into "
                    "cache.l2.url; the user must be `on`: ACL GETUSER",
                )
            case NoPermissionError():
                return Remedy(
                    "cache.l2.username",
                    "its access list lacks what is needed",
                    "see which: reprise doctor, and grant it",
                )
            case ssl.SSLCertVerificationError() if "mismatch" in cause.verify_message:
                return Remedy(
                    "cache.l2.url",
                    "its certificate is for another name",
                    "name it as its certificate does, or give it a certificate for this name",
                )
            case ssl.SSLCertVerificationError():
                return Remedy(
                    "cache.l2.tls.ca",
                    f"its certificate is not believed: {cause.verify_message}",
                    "name the authority that signed it in cache.l2.tls.ca, or have it renewed",
                )
            case ssl.SSLError() if any(alert in text.upper().replace(" ", "_") for alert in _UNTRUSTED):
                return _INTRODUCE
            case _ if encrypted and any(words in text for words in _HUNG_UP):
                return _INTRODUCE  # what it said of that is lost when the end of the connection comes first
        if encrypted and (isinstance(cause, ssl.SSLError) or _UNANSWERED in text):
            return Remedy(
                "cache.l2.url",
                "it does not do TLS there",
                "write redis:// and leave cache.l2.tls.enabled out, or name its tls-port",
            )
        if any(words in text for words in _HUNG_UP):
            return Remedy(
                "cache.l2.url",
                "it hangs up at the first word, as a server does that wants TLS",
                "write rediss:// in cache.l2.url, or set cache.l2.tls.enabled",
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
