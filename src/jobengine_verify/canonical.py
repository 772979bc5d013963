"""JSON in its one canonical spelling (RFC 8785), and reading it so that nothing else passes."""

import json
from decimal import Decimal
from typing import Any, NoReturn, cast

_EXACT_INTEGERS = 2**53
_PLAIN_DIGITS = 21  # ECMAScript writes numbers below 10^21 without an exponent,
_PLAIN_ZEROS = -6  # and those from 10^-6 on


class NotCanonical(ValueError):
    """The text is not JSON, or not in its canonical spelling."""


def read(text: str, start: int) -> tuple[Any, int]:
    """Return the value that stands at *start* of *text* and where it ends; raises NotCanonical.

    >>> read('x{"a":1}y', 1)
    ({'a': 1}, 8)
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
        spelled = write(value)
    except (ValueError, OverflowError, RecursionError):
        raise NotCanonical("the line is not JSON") from None
    if not text.startswith(spelled, start) or start + len(spelled) != end:
        raise NotCanonical("the line is not in canonical form")
    return value, end


def write(value: Any) -> str:
    """Return the RFC 8785 form of a value read from JSON; raises ValueError where it has none.

    >>> write({"b": 1e21, "a": [True, None, "é"]})
    '{"a":[true,null,"é"],"b":1e+21}'
    """
    match value:
        case str():
            return _quote(value)
        case None | bool():
            return _WORDS[value]
        case int() | float():
            return _number(value)
        case dict():
            members = cast("dict[str, Any]", value)
            return "{" + ",".join(f"{_quote(key)}:{write(members[key])}" for key in sorted(members, key=_utf16)) + "}"
        case _:
            return "[" + ",".join(map(write, value)) + "]"


def _number(value: float) -> str:
    """Spell a number as ECMAScript does (ECMA-262, Number::toString), which RFC 8785 section 3.2.2.3 asks for."""
    if isinstance(value, int) and abs(value) < _EXACT_INTEGERS:
        return str(value)
    sign, figures, exponent = Decimal(repr(float(value))).as_tuple()
    digits = "".join(map(str, figures)).lstrip("0").rstrip("0")
    if not digits:
        return "0"
    # The value is 0.<digits> times ten to the power of point.
    point = len(figures) + int(exponent)
    if 0 < point <= _PLAIN_DIGITS:
        whole, rest = digits[:point].ljust(point, "0"), digits[point:]
        text = whole + ("." + rest if rest else "")
    elif _PLAIN_ZEROS < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        text = digits[0] + ("." + digits[1:] if digits[1:] else "") + f"e{point - 1:+d}"
    return "-" * sign + text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_quote = json.JSONEncoder(ensure_ascii=False).encode
_WORDS = {None: "null", True: "true", False: "false"}
