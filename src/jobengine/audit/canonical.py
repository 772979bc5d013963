"""One value, one text: the RFC 8785 form of JSON, from the values the core works with."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

import rfc8785

# More digits than this before the point cannot be below 2^53; converting first could cost gigabytes (1E+999999).
_INTEGER_DIGITS = 16
_LARGEST = 2**53 - 1
_PLAIN = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)


def canonical(value: object) -> bytes:
    """Return the RFC 8785 form of *value*, in UTF-8.

    Takes None, bool, int, float, Decimal, str, lists, tuples and mappings with str keys. Raises ValueError for what
    JSON cannot say exactly (integers beyond 2^53 - 1, NaN, a Decimal that no double holds, lone surrogates) and
    TypeError for any other type.

    >>> canonical({"b": Decimal("2.50"), "a": [1, None]})
    b'{"a":[1,null],"b":2.5}'
    """
    odd: list[object] = []
    plain = _plain(value, odd)
    # Without fractions, large numbers and keys outside ASCII both say the same, and the standard library's is in C: an
    # entry is sealed three times as fast.
    return rfc8785.dumps(plain) if odd else _PLAIN.encode(plain).encode()


def exact_number(value: Decimal) -> int | float:
    """Return the JSON number equal to *value*; raises ValueError where there is none.

    >>> exact_number(Decimal("1E+3")), exact_number(Decimal("999999999.999999"))
    (1000, 999999999.999999)
    """
    if not value.is_finite() or value.adjusted() >= _INTEGER_DIGITS:
        raise ValueError(f"{value} is not an exact JSON number")
    if value == value.to_integral_value():
        return int(value)
    number = float(value)
    if Decimal(repr(number)) != value:
        raise ValueError(f"{value} is not an exact JSON number")
    return number


def _plain(value: object, odd: list[object]) -> Any:
    """Return *value* as the types of JSON; what only RFC 8785 knows how to write is put into *odd* as well."""
    match value:
        case str():  # most of an entry
            return str(value)
        case None | bool():
            return value
        case int():
            if abs(value) > _LARGEST:
                odd.append(value)
            return value
        case float() | Decimal():
            odd.append(value)
            return value if isinstance(value, float) else exact_number(value)
        case dict() | Mapping():
            return {_key(key, odd): _plain(item, odd) for key, item in cast("Mapping[object, object]", value).items()}
        case list() | tuple():
            return [_plain(item, odd) for item in cast("list[object]", value)]
        case _:
            raise TypeError(f"{type(value).__name__} is not JSON")


def _key(key: object, odd: list[object]) -> str:
    if not isinstance(key, str):
        raise TypeError("the keys of a JSON object are strings")
    if not key.isascii():
        odd.append(key)
    return str(key)
