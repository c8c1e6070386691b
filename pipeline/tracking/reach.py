"""Check whether a W&B server answers, because wandb itself would wait 90 s for it."""

from __future__ import annotations

import os
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

PATIENCE = 3.0  # seconds
SERVER = "https://api.wandb.ai"


def server() -> str:
    """Return the address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL", SERVER)


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
