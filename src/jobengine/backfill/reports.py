"""What the worker of a batch may say: which event keys, which checkpoint, and why an attempt failed."""

import json
import re
from collections.abc import Sequence
from typing import Final

from jobengine.errors import ValidationFailed

MAX_KEYS: Final = 10_000
MAX_KEY_BYTES: Final = 256
MAX_CHECKPOINT_BYTES: Final = 64 * 1024
MAX_ERROR_CHARACTERS: Final = 4_096

# An escaped U+0000, and not a backslash before the letters "u0000".
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def check_keys(keys: Sequence[str]) -> None:
    """Raise ValidationFailed unless these are at most 10,000 keys, each 1 to 256 bytes of UTF-8 without U+0000.

    >>> check_keys(["order-1", "x" * 257])
    Traceback (most recent call last):
    jobengine.errors.ValidationFailed: keys[1]: must be 1 to 256 bytes
    """
    if len(keys) > MAX_KEYS:
        raise ValidationFailed("keys", f"are more than {MAX_KEYS}")
    for index, key in enumerate(keys):
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise ValidationFailed(f"keys[{index}]", "holds a lone surrogate") from None
        if not 1 <= size <= MAX_KEY_BYTES:
            raise ValidationFailed(f"keys[{index}]", f"must be 1 to {MAX_KEY_BYTES} bytes")
        if "\x00" in key:
            raise ValidationFailed(f"keys[{index}]", "holds the character U+0000")


def check_checkpoint(value: object) -> None:
    r"""Raise ValidationFailed unless *value* is JSON of at most 64 KiB that a database can keep.

    >>> check_checkpoint({"page": 3, "cursor": "\\u0000"})
    >>> check_checkpoint(float("inf"))
    Traceback (most recent call last):
    jobengine.errors.ValidationFailed: checkpoint: is not JSON
    """
    path = "checkpoint"
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (ValueError, TypeError, RecursionError):
        raise ValidationFailed(path, "is not JSON") from None
    if size > MAX_CHECKPOINT_BYTES:
        raise ValidationFailed(path, f"must be at most {MAX_CHECKPOINT_BYTES} bytes")
    if _NUL.search(text):
        raise ValidationFailed(path, "holds the character U+0000")


def error_text(text: str) -> str:
    r"""Return *text* as the story of a failed attempt can be kept: at most 4,096 characters, all of them storable.

    >>> error_text("exit 1: \x00\ud800")
    'exit 1: ??'
    """
    return text[:MAX_ERROR_CHARACTERS].replace("\x00", "?").encode(errors="replace").decode()
