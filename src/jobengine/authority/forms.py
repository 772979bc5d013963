"""The strict reader of token requests: what is not exactly a form with one client in it is refused."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from jobengine.authority.oauth_errors import Kind, OAuthError, invalid_client, invalid_request

MAX_BODY_BYTES: Final = 16 * 1024
MAX_PARAMETERS: Final = 32

_MEDIA_TYPE: Final = re.compile(
    r'application/x-www-form-urlencoded(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.ASCII | re.IGNORECASE
)
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_BASIC: Final = re.compile(r"(?i:basic) +([A-Za-z0-9+/]+={0,2})", re.ASCII)
_GENERATED: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of one request; it never shows their values, since one of them may be a secret."""

    values: Mapping[str, str] = field(repr=False)

    def get(self, name: str) -> str | None:
        """Return the parameter, None where it is absent or empty: RFC 6749 section 3.2 makes the two equal.

        >>> Form({"scope": "orch:read", "tenant": ""}).get("tenant")
        """
        return self.values.get(name) or None


def read_form(content_types: Sequence[str], body: bytes) -> Form | OAuthError:
    """Read an ``application/x-www-form-urlencoded`` *body*; *content_types* holds every Content-Type header.

    >>> read_form(["application/x-www-form-urlencoded"], b"scope=orch%3Aread+orch:admit").get("scope")
    'orch:read orch:admit'
    >>> read_form(["application/json"], b"{}").kind
    <Kind.UNSUPPORTED_MEDIA: 'unsupported_media'>
    """
    if len(content_types) > 1:
        return invalid_request("Content-Type was sent more than once", "content_type_repeated")
    if not content_types or _MEDIA_TYPE.fullmatch(content_types[0]) is None:
        message = "Content-Type must be application/x-www-form-urlencoded, without a charset or with charset=utf-8"
        return invalid_request(message, "content_type_unsupported", Kind.UNSUPPORTED_MEDIA)
    if len(body) > MAX_BODY_BYTES:
        return invalid_request(f"the body is larger than {MAX_BODY_BYTES} bytes", "form_too_large", Kind.TOO_LARGE)
    if not body.isascii():
        return invalid_request("the form holds bytes outside ASCII that are not percent-encoded", "form_not_ascii")
    return _read_parameters([part for part in body.decode("ascii").split("&") if part])


def _read_parameters(parts: list[str]) -> Form | OAuthError:
    if len(parts) > MAX_PARAMETERS:
        return invalid_request(f"the form has more than {MAX_PARAMETERS} parameters", "form_too_many_parameters")
    values: dict[str, str] = {}
    for part in parts:
        raw_name, _, raw_value = part.partition("=")
        try:
            name, value = _decode(raw_name), _decode(raw_value)
        except ValueError:
            return invalid_request("the form holds bad percent-encoding, bad UTF-8 or U+0000", "form_undecodable")
        if name in values:
            return invalid_request("a parameter was sent more than once", "form_repeated_parameter")
        values[name] = value
    return Form(MappingProxyType(values))


def _decode(text: str) -> str:
    if _BAD_ESCAPE.search(text) is not None:
        raise ValueError("bad percent-encoding")
    raw = text.replace("+", " ").encode("ascii")
    decoded = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), raw).decode("utf-8")
    if "\x00" in decoded:
        raise ValueError("U+0000")
    return decoded


class Method(StrEnum):
    """How a client proved who it is, by its name in RFC 8414."""

    BASIC = "client_secret_basic"
    BODY = "client_secret_post"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client says it is; *client_id* has the form of a generated id, whether or not such a client exists."""

    client_id: str
    secret: str = field(repr=False)
    method: Method


def client_credentials(authorization: Sequence[str], form: Form) -> Credentials | OAuthError:
    """Read the one way in which the client authenticates; *authorization* holds every Authorization header.

    >>> client_credentials([], Form({"client_id": "abc", "client_secret": "s3cret"}))
    Credentials(client_id='abc', method=<Method.BODY: 'client_secret_post'>)
    """
    client_id, secret = form.get("client_id"), form.get("client_secret")
    if len(authorization) > 1:
        return invalid_request("Authorization was sent more than once", "authorization_repeated")
    if authorization and (client_id or secret):
        message = "the client must authenticate in the Authorization header or in the body, not in both"
        return invalid_request(message, "client_authentication_repeated")
    if authorization:
        return _basic(authorization[0])
    if not client_id or not secret:
        return invalid_client("client_authentication_missing")
    return _credentials(client_id, secret, Method.BODY)


def _basic(header: str) -> Credentials | OAuthError:
    found = _BASIC.fullmatch(header)
    if found is None:
        return invalid_client("authorization_malformed")
    try:
        # RFC 6749 section 2.3.1 encodes both halves as form values; the text around them must be ASCII then.
        pair = base64.b64decode(found[1], validate=True).decode("ascii")
        raw_id, colon, raw_secret = pair.partition(":")
        client_id, secret = _decode(raw_id), _decode(raw_secret)
    except (binascii.Error, ValueError):
        return invalid_client("authorization_malformed")
    if not colon:
        return invalid_client("authorization_malformed")
    return _credentials(client_id, secret, Method.BASIC)


def _credentials(client_id: str, secret: str, method: Method) -> Credentials | OAuthError:
    # Ids and secrets are generated, so that anything else belongs to nobody and need not reach the database.
    if _GENERATED.fullmatch(client_id) is None or _GENERATED.fullmatch(secret) is None:
        return invalid_client("credentials_malformed")
    return Credentials(client_id, secret, method)
