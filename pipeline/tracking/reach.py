"""Whether a W&B server answers, asked before wandb waits a minute and a half for it."""

from __future__ import annotations

import os
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

PATIENCE = 3.0  # seconds
SERVER = "https://api.wandb.ai"


def server() -> str:
    """Return the address in use."""
    return os.environ.get("WANDB_BASE_URL", SERVER)


def unreachable(address: str) -> str | None:
    """Return why a server cannot be used now; None if it answers, with whatever."""
    try:
        urlopen(address, timeout=PATIENCE).close()
    except HTTPError:
        return None  # it is there; a page of its own it need not have
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return f"{address} does not answer ({reason})"
    return None
