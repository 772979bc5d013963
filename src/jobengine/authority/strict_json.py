"""JSON as a signature needs it: one text, one meaning, or no meaning at all (RFC 7493, I-JSON)."""

import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn, cast

MAX_DEPTH: Final = 8
MAX_INTEGER: Final = 2**53 - 1

_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)  # an open string ends all
_MAX_DIGITS: Final = len(str(MAX_INTEGER)) + 1


def read_object(raw: bytes) -> dict[str, object]:
    r"""Read one JSON object; raises ValueError for whatever two parsers could understand differently.

    Refused are: other encodings than UTF-8, repeated names, floats, NaN and Infinity, integers beyond 2^53, U+0000 and
    lone surrogates in strings, and nesting deeper than ``MAX_DEPTH``.

    >>> read_object(b'{"sub": "jec_1", "exp": 1}')
    {'sub': 'jec_1', 'exp': 1}
    >>> read_object(b'{"scope": "orch:read", "scope": "orch:quota"}')
    Traceback (most recent call last):
    ValueError: a name is repeated
    """
    text = raw.decode("utf-8")
    _check_depth(text)
    value: object = json.loads(
        text, object_pairs_hook=_unique, parse_float=_refuse, parse_constant=_refuse, parse_int=_small_integer
    )
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - what came in was text, and not of this form
    for string in _strings(cast("dict[str, object]", value)):
        string.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
        if "\x00" in string:
            raise ValueError("a string holds U+0000")
    return cast("dict[str, object]", value)


def _check_depth(text: str) -> None:
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name is repeated")
    return members


def _refuse(_: str) -> NoReturn:
    raise ValueError("numbers must be integers")


def _small_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or abs(number := int(digits)) > MAX_INTEGER:
        raise ValueError("an integer is too large")
    return number


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, member in cast("dict[str, object]", value).items():
            yield name
            yield from _strings(member)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _strings(item)
