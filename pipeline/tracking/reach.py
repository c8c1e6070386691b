"""Check whether a W&B server answers, because wandb itself would wait 90 s for it."""

from __future__ import annotations

import os
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from pipeline.display.errors import UserError

PATIENCE = 3.0  # seconds
SERVER = "https://api.wandb.ai"


def server() -> str:
    """Return the address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL", SERVER)


def check() -> None:
    """Refuse a WANDB_BASE_URL that can be no address of a server.

    Raises:
        UserError: it is not `http://HOST` or `https://HOST`, or its port is not a number.
    """
    address = server()
    try:
        parts = urlsplit(address)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port, or brackets without an IPv6 address
        fits = False
    if not fits or not address.isprintable() or " " in address:
        raise UserError(
            f"WANDB_BASE_URL={address} is not the address of a server; write https://HOST or "
            "http://HOST:PORT, or unset it for W&B's own"
        )


def unreachable(address: str) -> str | None:
    """Return why a server cannot be reached; None if it answers with any status."""
    try:
        urlopen(address, timeout=PATIENCE).close()
    except HTTPError:
        return None  # the server answers; the status does not matter
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return f"{address} does not answer ({reason})"
    return None
