import json
import math
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from jobengine.audit.actions import Action
from jobengine.audit.canonical import canonical, exact_number
from jobengine_verify.canonical import NotCanonical, read, write

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        ({"\U0001f600": 1, "\ufb33": 2}, '{"\U0001f600":1,"\ufb33":2}'),  # UTF-16 order, not that of code points
        ('\x00\x1f\x7f"\\/\b\f\n\r\té€\u2028', '"\\u0000\\u001f\x7f\\"\\\\/\\b\\f\\n\\r\\té€\u2028"'),
        (Action.QUOTA_CREATED, '"quota.created"'),
        ((1, [True, None]), "[1,[true,null]]"),
        (MappingProxyType({"a": {}}), '{"a":{}}'),
        (Decimal("1.0"), "1"),
        (Decimal("-0"), "0"),
        (Decimal("0.000001"), "0.000001"),
        (Decimal("0.0000001"), "1e-7"),
        (Decimal(1000000000), "1000000000"),
        (Decimal("999999999.999999"), "999999999.999999"),
        (2**53 - 1, "9007199254740991"),
        (-0.0, "0"),
        (1e21, "1e+21"),
        (1e20, "100000000000000000000"),
        (5e-324, "5e-324"),
        (333333333.33333329, "333333333.3333333"),
        (1e23, "1e+23"),
        (4.50, "4.5"),
        (2e-3, "0.002"),
        (1e-27, "1e-27"),
    ],
)
def test_a_value_has_its_rfc8785_form(value: object, text: str) -> None:
    """Service and verifier both write the one form of a value."""
    assert canonical(value).decode() == text
    assert write(json.loads(text)) == text


@pytest.mark.parametrize(
    "value",
    [
        2**53,
        -(2**53),
        Decimal(2**53),
        Decimal("1E+999999"),
        Decimal("0.1234567890123456789"),
        Decimal("NaN"),
        Decimal("-Infinity"),
        math.nan,
        math.inf,
        "\ud800",
        {"\udfff": 1},
    ],
)
def test_a_value_without_exact_form_is_refused(value: object) -> None:
    """What a double or UTF-8 cannot hold is an error, never an approximation."""
    with pytest.raises(ValueError):
        canonical(value)


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {1, 2}}, b"bytes", Fraction(1, 2), object()])
def test_a_value_that_is_not_json_is_refused(value: object) -> None:
    """Other types are a mistake of the caller."""
    with pytest.raises(TypeError):
        canonical(value)


@given(st.decimals(0, 10**9, allow_nan=False, places=6))
def test_every_refill_rate_is_exact_in_json(rate: Decimal) -> None:
    """Up to 10^9 with six decimals nothing is lost on the way through a double."""
    assert Decimal(repr(exact_number(rate))) == rate
    assert Decimal(canonical(rate).decode()) == rate


@given(values)
def test_two_independent_writers_agree_on_any_value(value: Any) -> None:
    """The verifier's own RFC 8785 writer gives the service's bytes, and reads them as canonical."""
    text = canonical(value).decode()

    assert write(json.loads(text)) == text
    assert read(f"x{text}y", 1) == (json.loads(text), 1 + len(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"b":1,"a":1}',
        '{"a": 1}',
        '{"a":1.0}',
        '{"a":1e2}',
        '{"a":-0}',
        '{"a":01}',
        '{"a":9007199254740993}',
        '{"a":1e999}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":"\\u0041"}',
        '{"a":"\\/"}',
        '{"a":"\\ud83d\\ude00"}',
        '{"a":"\\ud800"}',
        '{"a":"\n"}',
        '{"a":1',
        "9" * 5000,
        "[" * 200_000,
        "",
    ],
)
def test_a_second_spelling_is_not_read(text: str) -> None:
    """The verifier refuses JSON that says something known in other bytes, and what is no JSON at all."""
    with pytest.raises(NotCanonical):
        read(text, 0)


@given(values | st.text())
def test_the_quick_way_writes_what_the_thorough_one_does(value: Any) -> None:
    """Whatever the standard library writes is what RFC 8785 asks for, down to the byte; what it refuses is refused."""
    try:
        thorough = rfc8785.dumps(value)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            canonical(value)
    else:
        assert canonical(value) == thorough
