"""Bodies as the contract reads them: one UTF-8 JSON document, no repeated keys, not too deep, then the exact type."""

import json
import re
from collections.abc import Iterator
from math import isinf
from typing import NoReturn, TypeVar, cast

import msgspec

from jobengine.errors import MalformedJson, ValidationFailed

MAX_DEPTH = 32
# An integer this long is out of every range; reading more digits would cost time for nothing.
_MAX_DIGITS = 40
# A fault's path repeats the caller's own words, but not at any length.
_MAX_PATH = 200
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_UNKNOWN_FIELD = re.compile(r"contains unknown field `(.*?)`")
_AT = re.compile(r" - at `\$?\.?(.*?)`$")

Wire = TypeVar("Wire")


def read_json(body: bytes, into: type[Wire]) -> Wire:
    """Read *body* as *into*; raises MalformedJson, or ValidationFailed naming the path of the first fault.

    A body that may be left out is still an object where it is sent: ``null`` is none.

    >>> read_json(b'{"a": 1, "a": 2}', dict)
    Traceback (most recent call last):
    jobengine.errors.MalformedJson: a key is repeated
    """
    document = _parse(body)
    if document is None:
        raise ValidationFailed("body", "must be an object")
    if b"\\u" in body:
        # Without an escape neither can be there: a raw U+0000 is not JSON, a raw surrogate is not UTF-8.
        _check_strings(document)
    try:
        return msgspec.convert(document, into)
    except msgspec.ValidationError as error:
        raise _validation(str(error)) from None


def _parse(body: bytes) -> object:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedJson("the body is not UTF-8") from None
    _check_depth(text)
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError):
        raise MalformedJson("the body is not one JSON document") from None


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        # Too few to nest too deeply, wherever they stand: a mebibyte of one string is not walked through.
        return
    brackets = _STRINGS.sub("", text).encode().translate(None, _NOT_BRACKETS)
    # From within, a layer or two at a time; a thousand objects beside each other are gone at once.
    for _ in range(MAX_DEPTH // 2):
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
        if not brackets:
            return
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += 1 if token[0] in "[{" else -1 if token[0] in "]}" else 0
        if depth > MAX_DEPTH:
            raise MalformedJson(f"the body is nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise MalformedJson("a key is repeated")
    return members


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= _MAX_DIGITS else int(digits[:_MAX_DIGITS])


def _float(digits: str) -> float:
    value = float(digits)
    if isinf(value):
        raise ValidationFailed("body", "holds a number that is out of every range")
    return value


def _constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _check_strings(document: object) -> None:
    for path, text in _strings("", document):
        if "\x00" in text:
            raise ValidationFailed(path[:_MAX_PATH] or "body", "holds the character U+0000")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise ValidationFailed(path[:_MAX_PATH] or "body", "holds a lone surrogate")


def _strings(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, member in cast("dict[str, object]", value).items():
            # The name before the member, and under the path above it: a path never holds what is refused here.
            yield path, name
            yield from _strings(f"{path}.{name}".lstrip("."), member)
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[object]", value)):
            yield from _strings(f"{path}[{index}]", item)


def _validation(message: str) -> ValidationFailed:
    at = _AT.search(message)
    path = at[1] if at else ""
    if unknown := _UNKNOWN_FIELD.search(message):
        name = f"{path}.{unknown[1]}".lstrip(".")[:_MAX_PATH]
        return ValidationFailed(name, "is not a field of this request", code="unknown_field")
    return ValidationFailed(path[:_MAX_PATH] or "body", _AT.sub("", message).replace("`", ""))
