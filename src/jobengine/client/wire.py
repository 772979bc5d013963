"""What both clients tell their HTTP library, and the log."""

from typing import Any, Final
from urllib.parse import urlsplit

from jobengine.client.errors import ClientError

_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}


def http_options(url: str) -> dict[str, Any]:
    """Return how connections to *url* are made; raises ValueError for what is no address of a server."""
    host = urlsplit(url).hostname
    if not url.startswith(("http://", "https://")) or not host:
        raise ValueError(f"{url} is not the address of a server, like https://jobengine.example")
    # A proxy of the environment is no way to this machine itself.
    return {"base_url": url, "headers": {"User-Agent": "jobengine-client"}, "trust_env": host not in _LOOPBACK}


def tell_unreleased(silence: ClientError | None) -> None:
    """Log that a lease could not be given back: the work under it is done, and the lease ends by itself."""
    if silence is not None:
        import logging  # noqa: PLC0415 - it is slow to import, and rarely needed

        logging.getLogger("jobengine.client").warning("a lease was not given back and ends by itself: %s", silence)
