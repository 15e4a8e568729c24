"""Which Prefect server is meant, and whether it is there at all."""

from __future__ import annotations

from kdci.errors import StorageError
from pipelines.tracking.uri import redacted

START_IT = "start one with `prefect server start` and name it in PREFECT_API_URL"
TIMEOUT = 5.0


def server_address() -> str | None:
    """Return the API's address, of PREFECT_API_URL or Prefect's profile; None: none is named."""
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    return str(address) if address else None


def require_answer(address: str) -> None:
    """Check in seconds that a server answers; Prefect itself would try for minutes.

    Raises:
        StorageError: It does not.
    """
    import httpx

    try:
        httpx.get(f"{address.rstrip('/')}/health", timeout=TIMEOUT).raise_for_status()
    except httpx.HTTPError:
        what = "the Prefect server does not answer"
        raise StorageError(redacted(address), what, START_IT) from None
