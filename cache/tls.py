"""TLS to a server: whom to trust, and who we are where it wants to know. Made of files once, for every connection.

Making a context takes longer (16 ms with the authorities that the system trusts) than a lookup may.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(ca: Path | None) -> ssl.SSLContext:
    """Servers must have a certificate of this authority (None: of one that the system trusts), with their name in it.

    Raises ValueError, which says what is wrong with the file.
    """
    context = ssl.create_default_context(cafile=None) if ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is not None:
        try:
            context.load_verify_locations(cafile=ca)
        except ssl.SSLError:
            raise ValueError("holds no certificate in PEM form") from None
        except OSError as error:
            raise ValueError(_unread(error)) from None
    return context


def introduce(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Show servers this certificate. `key` may stand in the same file. Raises ValueError, as above."""
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError:
        raise ValueError("is not the certificate's key, has a passphrase, or one of both is not in PEM form") from None
    except OSError as error:
        raise ValueError(_unread(error)) from None


def _no_passphrase() -> str:
    """Else a key that has one is asked for at the terminal, where nobody sits."""
    return ""


def _unread(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"
