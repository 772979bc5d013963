"""The end of a server, as an answer without an end of its own learns of it."""

import asyncio
from typing import Any, Final

ENDING: Final = "jobengine.ending"
"""Where the server puts an `asyncio.Event` into the state of every scope; it is set when the server begins to end."""


def is_ending(state: dict[str, Any]) -> bool:
    """Tell whether the server that answers has begun to end; one that never said so has not."""
    event: asyncio.Event | None = state.get(ENDING)
    return event is not None and event.is_set()
