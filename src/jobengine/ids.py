"""Identifiers: UUIDv7 strings, so that keys sort by the time they were made, and the names that job types may have."""

import os
import re
import time
from collections.abc import Iterator
from typing import Final

JOB_TYPE: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z"
"""What a job type may be called, wherever one is read."""

_RANDOM_BYTES: Final = 10
_IDS_AT_ONCE: Final = 64
_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_id() -> str:
    """Return a fresh UUIDv7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, 74 random bits.

    >>> text = new_id()
    >>> len(text), text[14]
    (36, '7')
    """
    return _id_of(os.urandom(_RANDOM_BYTES))


def new_ids() -> Iterator[str]:
    """Return a source of fresh ids for one transaction: the system is asked for randomness once for many.

    >>> ids = new_ids()
    >>> len({next(ids) for _ in range(100)})
    100
    """
    while True:
        random = os.urandom(_RANDOM_BYTES * _IDS_AT_ONCE)
        for place in range(0, len(random), _RANDOM_BYTES):
            yield _id_of(random[place : place + _RANDOM_BYTES])


def _id_of(random_bytes: bytes) -> str:
    millis = time.time_ns() // 1_000_000
    random = int.from_bytes(random_bytes)
    stamp, high, low = millis & (1 << 48) - 1, random >> 62 & 0xFFF, random & (1 << 62) - 1
    value = stamp << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_id(text: str) -> bool:
    """Tell whether *text* is a canonical lower-case UUID; anything else names nothing.

    >>> is_id("0198c0de-0000-7000-8000-000000000000"), is_id("../etc"), is_id("0198C0DE-0000-7000-8000-000000000000")
    (True, False, False)
    """
    return _CANONICAL.fullmatch(text) is not None
