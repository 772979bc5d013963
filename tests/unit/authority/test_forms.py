import base64
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.authority.forms import (
    MAX_BODY_BYTES,
    MAX_PARAMETERS,
    Credentials,
    Form,
    Method,
    client_credentials,
    read_form,
)
from jobengine.authority.oauth_errors import Kind, OAuthError

MEDIA_TYPE = "application/x-www-form-urlencoded"


def read(body: bytes, *content_types: str) -> dict[str, str] | tuple[str, Kind]:
    """Return the parameters, or the cause and kind of the refusal."""
    match read_form(content_types or [MEDIA_TYPE], body):
        case Form(values):
            return dict(values)
        case OAuthError(error, _, cause, kind):
            assert error == "invalid_request"
            return cause, kind


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b"", {}),
        (b"a=1&b=2", {"a": "1", "b": "2"}),
        (b"a=x+y%20z%2B", {"a": "x y z+"}),
        (b"a=%C3%A9%F0%9F%9A%80", {"a": "é\U0001f680"}),
        (b"a=1=2==", {"a": "1=2=="}),
        (b"a", {"a": ""}),
        (b"a=", {"a": ""}),
        (b"=1", {"": "1"}),
        (b"&a=1&&b=2&", {"a": "1", "b": "2"}),
        (b"sc%6Fpe=orch:read", {"scope": "orch:read"}),
        (b"a=1;b=2", {"a": "1;b=2"}),
        (b"a=%0A%7F", {"a": "\n\x7f"}),
        (b"&".join(b"p%d=1" % number for number in range(MAX_PARAMETERS)), {f"p{n}": "1" for n in range(32)}),
        (b"a=" + b"x" * (MAX_BODY_BYTES - 2), {"a": "x" * (MAX_BODY_BYTES - 2)}),
    ],
)
def test_a_well_made_form_is_read(body: bytes, values: dict[str, str]) -> None:
    """The parameters mean what the encoding says, within the limits."""
    assert read(body) == values


@pytest.mark.parametrize(
    ("body", "cause", "kind"),
    [
        (b"a=" + b"x" * (MAX_BODY_BYTES - 1), "form_too_large", Kind.TOO_LARGE),
        (b"&".join(b"p%d=1" % n for n in range(MAX_PARAMETERS + 1)), "form_too_many_parameters", Kind.BAD_REQUEST),
        (b"a=1&a=2", "form_repeated_parameter", Kind.BAD_REQUEST),
        (b"a=1&a=1", "form_repeated_parameter", Kind.BAD_REQUEST),
        (b"a=1&%61=2", "form_repeated_parameter", Kind.BAD_REQUEST),
        (b"a=&a=", "form_repeated_parameter", Kind.BAD_REQUEST),
        (b"a=%", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%2", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%2&b=1", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%zz", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%u0041", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=% 41", "form_undecodable", Kind.BAD_REQUEST),
        (b"%=1", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%FF", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%C3", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%C0%AF", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%ED%A0%80", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%F4%90%80%80", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=%00", "form_undecodable", Kind.BAD_REQUEST),
        (b"a%00=1", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=\x00", "form_undecodable", Kind.BAD_REQUEST),
        (b"a=\xc3\xa9", "form_not_ascii", Kind.BAD_REQUEST),
        (b"\xef\xbb\xbfa=1", "form_not_ascii", Kind.BAD_REQUEST),
        ("a=1".encode("utf-16"), "form_not_ascii", Kind.BAD_REQUEST),
    ],
)
def test_a_form_that_is_not_exact_is_refused(body: bytes, cause: str, kind: Kind) -> None:
    """Nothing is guessed, replaced or cut, in parameters that nobody knows neither."""
    assert read(body) == (cause, kind)


@pytest.mark.parametrize(
    "content_type",
    [
        MEDIA_TYPE,
        MEDIA_TYPE.upper(),
        f"{MEDIA_TYPE};charset=utf-8",
        f"{MEDIA_TYPE}; charset=UTF-8",
        f'{MEDIA_TYPE} ; charset="utf-8"',
    ],
)
def test_the_media_type_of_forms_is_read(content_type: str) -> None:
    """Alone, or with the one charset there is."""
    assert read(b"a=1", content_type) == {"a": "1"}


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data; boundary=x",
        "text/plain",
        f"{MEDIA_TYPE}2",
        f"{MEDIA_TYPE}, application/json",
        f"{MEDIA_TYPE}; charset=iso-8859-1",
        f"{MEDIA_TYPE}; charset=utf-16",
        f"{MEDIA_TYPE}; charset=utf-8; charset=utf-7",
        f"{MEDIA_TYPE}; boundary=x",
        f"{MEDIA_TYPE}\n",
    ],
)
def test_another_media_type_or_charset_is_refused(content_type: str) -> None:
    """What claims to be something else is not read as a form."""
    assert read(b"a=1", content_type) == ("content_type_unsupported", Kind.UNSUPPORTED_MEDIA)


def test_an_absent_or_repeated_media_type_is_refused() -> None:
    """One header, exactly."""
    absent = read_form([], b"a=1")

    assert isinstance(absent, OAuthError)
    assert absent.kind is Kind.UNSUPPORTED_MEDIA
    assert read(b"a=1", MEDIA_TYPE, MEDIA_TYPE) == ("content_type_repeated", Kind.BAD_REQUEST)


def test_an_empty_parameter_is_an_absent_one() -> None:
    """RFC 6749 section 3.2 says so."""
    form = Form({"scope": "", "tenant": "acme"})

    assert (form.get("scope"), form.get("tenant"), form.get("other")) == (None, "acme", None)


def test_a_form_never_shows_its_values() -> None:
    """A secret cannot reach a log by way of a representation."""
    assert "s3cret" not in repr(Form({"client_secret": "s3cret"}))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """No body makes the reader fail, and none that is accepted holds a NUL."""
    answer = read_form([MEDIA_TYPE], body)

    if isinstance(answer, Form):
        assert body.isascii()
        assert "\x00" not in "".join([*answer.values, *answer.values.values()])


@given(st.text(alphabet="a=&%+0F;\x00 \u00e9", max_size=30))
def test_any_text_of_form_characters_is_read_or_refused(body: str) -> None:
    """Neither do the characters that mean something in a form."""
    assert isinstance(read_form([MEDIA_TYPE], body.encode()), Form | OAuthError)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
        max_size=MAX_PARAMETERS,
    )
)
def test_what_a_client_encodes_is_what_is_read(values: dict[str, str]) -> None:
    """The reader is the inverse of the usual encoder."""
    assert read(urlencode(values).encode()) == values


def basic(pair: str | bytes, scheme: str = "Basic ") -> str:
    raw = pair if isinstance(pair, bytes) else pair.encode()
    return scheme + base64.b64encode(raw).decode()


@pytest.mark.parametrize("header", [basic("jec_1:jes_2"), basic("jec_1:jes_2", "basic  "), basic("jec%5F1:jes%5f2")])
def test_basic_credentials_are_read(header: str) -> None:
    """Both halves are form-encoded before they are joined (RFC 6749 section 2.3.1)."""
    assert client_credentials([header], Form({})) == Credentials("jec_1", "jes_2", Method.BASIC)


def test_credentials_in_the_body_are_read() -> None:
    """The other way, alone."""
    form = Form({"client_id": "jec_1", "client_secret": "jes_2"})

    assert client_credentials([], form) == Credentials("jec_1", "jes_2", Method.BODY)
    assert "jes_2" not in repr(client_credentials([], form))


@pytest.mark.parametrize(
    ("headers", "form", "cause"),
    [
        ([], {}, "client_authentication_missing"),
        ([], {"client_id": "jec_1"}, "client_authentication_missing"),
        ([], {"client_secret": "jes_2"}, "client_authentication_missing"),
        ([], {"client_id": "jec_1", "client_secret": ""}, "client_authentication_missing"),
        ([], {"client_id": "jec 1", "client_secret": "jes_2"}, "credentials_malformed"),
        ([], {"client_id": "jec_1", "client_secret": "é"}, "credentials_malformed"),
        ([], {"client_id": "j" * 129, "client_secret": "jes_2"}, "credentials_malformed"),
        ([], {"client_id": "' or 1=1 --", "client_secret": "jes_2"}, "credentials_malformed"),
        ([""], {}, "authorization_malformed"),
        (["Basic"], {}, "authorization_malformed"),
        (["Basic "], {}, "authorization_malformed"),
        (["Bearer abc"], {}, "authorization_malformed"),
        (["Basic ###"], {}, "authorization_malformed"),
        (["Basic amVjXzE6amVzXzI=="], {}, "authorization_malformed"),
        ([basic("jec_1:jes_2") + "\n"], {}, "authorization_malformed"),
        ([basic("jec_1:jes_2").replace("Basic ", "Basic\u00a0")], {}, "authorization_malformed"),
        ([basic("jec_1")], {}, "authorization_malformed"),
        ([basic(b"\xff\xfe:\xff")], {}, "authorization_malformed"),
        ([basic("jec_1:%ff")], {}, "authorization_malformed"),
        ([basic("jec_1:%0")], {}, "authorization_malformed"),
        ([basic("jec_1:%00")], {}, "authorization_malformed"),
        ([basic(":jes_2")], {}, "credentials_malformed"),
        ([basic("jec_1:")], {}, "credentials_malformed"),
        ([basic("jec_1:jes_2:3")], {}, "credentials_malformed"),
        ([basic("jec+1:jes_2")], {}, "credentials_malformed"),
    ],
)
def test_credentials_that_are_none_look_like_wrong_ones(headers: list[str], form: dict[str, str], cause: str) -> None:
    """The caller learns nothing but that it failed; the audit learns why."""
    refused = client_credentials(headers, Form(form))

    assert refused == OAuthError("invalid_client", "client authentication failed", cause, Kind.UNAUTHENTICATED)


@pytest.mark.parametrize(
    ("headers", "form", "cause"),
    [
        ([basic("jec_1:jes_2")] * 2, {}, "authorization_repeated"),
        ([basic("a:b")], {"client_id": "a", "client_secret": "b"}, "client_authentication_repeated"),
        ([basic("a:b")], {"client_id": "a"}, "client_authentication_repeated"),
        ([basic("a:b")], {"client_secret": "b"}, "client_authentication_repeated"),
        (["Bearer abc"], {"client_id": "a", "client_secret": "b"}, "client_authentication_repeated"),
    ],
)
def test_two_ways_to_authenticate_are_one_too_many(headers: list[str], form: dict[str, str], cause: str) -> None:
    """Even where both agree."""
    refused = client_credentials(headers, Form(form))

    assert isinstance(refused, OAuthError)
    assert (refused.error, refused.cause, refused.kind) == ("invalid_request", cause, Kind.BAD_REQUEST)


@given(st.text(max_size=60))
def test_any_authorization_header_is_read_or_refused(header: str) -> None:
    """No header makes the reader fail."""
    assert isinstance(client_credentials([header], Form({})), Credentials | OAuthError)


@given(st.binary(max_size=60))
def test_any_basic_credentials_are_read_or_refused(pair: bytes) -> None:
    """Neither does what is inside one, whatever its encoding."""
    assert isinstance(client_credentials([basic(pair)], Form({})), Credentials | OAuthError)
