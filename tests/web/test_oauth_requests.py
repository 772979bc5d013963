"""How a request to the authority is read: nothing that could be understood in two ways is understood at all."""

import base64
from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode

import pytest
from tests.factories import expect_problem
from tests.web.authority_desk import FORM, GRANT_TYPE, Desk, refused

GOOD = urlencode({**GRANT_TYPE, "scope": "orch:read"})
FORM_TYPE = ("Content-Type", FORM)


def basic(client_id: str, secret: str) -> tuple[str, str]:
    return raw_basic(f"{client_id}:{secret}".encode())


def raw_basic(pair: bytes) -> tuple[str, str]:
    return ("Authorization", f"Basic {base64.b64encode(pair).decode()}")


def good(desk: Desk) -> tuple[str, str]:
    return basic(*desk.basic)


async def test_a_secret_in_the_authorization_header_is_good(desk: Desk) -> None:
    """HTTP Basic is the way RFC 6749 section 2.3.1 asks for; the answer is nobody else's to keep."""
    answer = await desk.token()

    assert answer.status_code == 200
    assert answer.json().keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (answer.json()["token_type"], answer.json()["scope"]) == ("Bearer", "orch:read")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"


async def test_a_secret_in_the_body_is_good(desk: Desk) -> None:
    """The other way of RFC 6749 section 2.3.1."""
    answer = await desk.http.post("/oauth2/token", data={**GRANT_TYPE, "scope": "orch:read", **desk.in_body})

    assert answer.status_code == 200


async def test_the_halves_of_basic_may_be_percent_encoded(desk: Desk) -> None:
    """RFC 6749 section 2.3.1 encodes both as form values first."""
    encoded = ["".join(f"%{ord(char):02x}" for char in half) for half in desk.basic]

    answer = await desk.send(GOOD, FORM_TYPE, basic(*encoded))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        FORM,
        f"{FORM};charset=UTF-8",
        f'{FORM}; charset="utf-8"',
        "Application/X-WWW-Form-URLencoded ; Charset=utf-8",
    ],
)
async def test_a_form_may_say_that_it_is_utf_8(desk: Desk, content_type: str) -> None:
    """No charset, or the one it can only be."""
    answer = await desk.send(GOOD, ("Content-Type", content_type), good(desk))

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "multipart/form-data; boundary=x",
        "text/plain",
        f"{FORM}; charset=iso-8859-1",
        f"{FORM}; charset=utf-8; charset=utf-16",
        f"{FORM}; boundary=x",
        f"{FORM}, application/json",
        "",
    ],
)
async def test_another_content_type_is_refused(desk: Desk, content_type: str) -> None:
    """What is not exactly a form is not read as one."""
    refused(await desk.send(GOOD, ("Content-Type", content_type), good(desk)), 415, "invalid_request")


async def test_a_body_without_a_content_type_is_refused(desk: Desk) -> None:
    """A guess could be another one than the proxy's in front."""
    refused(await desk.send(GOOD, good(desk)), 415, "invalid_request")


async def test_a_repeated_content_type_is_refused(desk: Desk) -> None:
    """Even twice the same."""
    refused(await desk.send(GOOD, FORM_TYPE, FORM_TYPE, good(desk)), 400, "invalid_request")


@pytest.mark.parametrize(
    "extra",
    [
        "&scope=orch%3Aread",
        "&grant_type=client_credentials",
        "&scope=",
        "&%73cope=orch%3Aread",
        "&unknown=1&unknown=2",
        "&quota_reason=one&quota_reason=two",
        "&a=%",
        "&a=%4",
        "&a=%zz",
        "&a=%ff",
        "&a=%c0%80",
        "&a=%ed%a0%80",
        "&a=%00",
        "&%ff=1",
        "&a=\u00e4",
    ],
)
async def test_a_form_that_could_mean_two_things_is_refused(desk: Desk, extra: str) -> None:
    """Repeated names, bad percent-encoding, bad UTF-8 and U+0000, in unknown parameters too."""
    refused(await desk.send((GOOD + extra).encode(), FORM_TYPE, good(desk)), 400, "invalid_request")


async def test_unknown_parameters_are_ignored(desk: Desk) -> None:
    """RFC 6749 section 3.2 asks for it."""
    answer = await desk.send(f"{GOOD}&resource=x&audience=y&=z", FORM_TYPE, good(desk))

    assert answer.status_code == 200


@pytest.mark.parametrize(("more", "status"), [(30, 200), (31, 400)])
async def test_more_than_thirty_two_parameters_are_refused(desk: Desk, more: int, status: int) -> None:
    """Two of them are grant_type and scope."""
    body = GOOD + "".join(f"&p{number}=x" for number in range(more))

    assert (await desk.send(body, FORM_TYPE, good(desk))).status_code == status


def padded(size: int) -> bytes:
    start = f"{GOOD}&pad=".encode()
    return start + b"x" * (size - len(start))


async def test_sixteen_kibibytes_are_read(desk: Desk) -> None:
    """The limit itself is not above the limit."""
    assert (await desk.send(padded(16 * 1024), FORM_TYPE, good(desk))).status_code == 200


async def test_one_byte_more_is_refused(desk: Desk) -> None:
    """Before anything is parsed."""
    refused(await desk.send(padded(16 * 1024 + 1), FORM_TYPE, good(desk)), 413, "invalid_request")


@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"])
async def test_a_stream_without_a_length_is_cut_off_at_the_same_size(desk: Desk, path: str) -> None:
    """A body that does not say how long it is cannot be longer either."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 2**20:
            sent += 4096
            yield b"x" * 4096

    answer = await desk.http.post(path, content=endless(), headers={"Content-Type": FORM}, auth=desk.basic)
    refused(answer, 413, "invalid_request")
    assert sent < 2**20


@pytest.mark.parametrize("length", ["abc", "-"])
async def test_a_length_that_is_no_number_is_refused(desk: Desk, length: str) -> None:
    """As a bad request, not as a fault of ours."""
    headers = (FORM_TYPE, ("Content-Length", length), good(desk))

    refused(await desk.send(GOOD, *headers), 400, "invalid_request")


@pytest.mark.parametrize(
    "query",
    [
        "client_id={id}&client_secret={secret}",
        "client_secret={secret}",
        "client_id={id}",
        "client%5fsecret=x",
        "client_secret",
        "token=x",
        "access_token=x",
    ],
)
@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"])
async def test_credentials_in_the_query_are_refused(desk: Desk, path: str, query: str) -> None:
    """They would stand in every log on the way, so the request fails although the header is right."""
    filled = query.format(id=desk.client.client_id, secret=desk.secret)
    answer = await desk.http.post(
        f"{path}?{filled}", data={**GRANT_TYPE, "scope": "orch:read", "token": "x"}, auth=desk.basic
    )

    refused(answer, 400, "invalid_request")
    assert desk.secret not in answer.text


async def test_parameters_in_the_query_are_not_read(desk: Desk) -> None:
    """Only the body speaks."""
    answer = await desk.send("grant_type=client_credentials", FORM_TYPE, good(desk), query="?scope=orch%3Aread")

    refused(answer, 400, "invalid_scope")


async def test_a_client_authenticates_in_one_way_only(desk: Desk) -> None:
    """RFC 6749 section 2.3: never in the header and in the body, not even with one half of it."""
    for part in (desk.in_body, {"client_id": desk.client.client_id}, {"client_secret": desk.secret}):
        refused(await desk.token(**part), 400, "invalid_request")


async def test_two_authorization_headers_are_refused(desk: Desk) -> None:
    """Whoever reads the other one would see another client."""
    refused(await desk.send(GOOD, FORM_TYPE, good(desk), good(desk)), 400, "invalid_request")


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer abc",
        "Basic",
        "Basic !!!",
        "Digest abc",
        raw_basic(b"no colon")[1],
        raw_basic(b"\xff\xfe:x")[1],
        raw_basic(b"jec_%zz:x")[1],
        raw_basic(b"jec_1:a b")[1],
        raw_basic(b"jec_1%00:x")[1],
        raw_basic(b":")[1],
        raw_basic(("jec_" + "a" * 200 + ":x").encode())[1],
    ],
)
async def test_an_authorization_header_that_is_no_secret_authenticates_nobody(desk: Desk, authorization: str) -> None:
    """The answer is a 401 with a challenge, never a fault of ours."""
    answer = await desk.send(GOOD, FORM_TYPE, ("Authorization", authorization))

    refused(answer, 401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith("Basic ")


async def test_a_request_without_a_client_is_refused(desk: Desk) -> None:
    """Half a client is none."""
    for body in (GOOD, f"{GOOD}&client_id={desk.client.client_id}", f"{GOOD}&client_secret={desk.secret}"):
        refused(await desk.send(body, FORM_TYPE), 401, "invalid_client")


@pytest.mark.parametrize("in_header", [True, False])
async def test_an_unknown_client_and_a_wrong_secret_look_alike(desk: Desk, in_header: bool) -> None:
    """Status, body and headers are equal: nobody learns which ids exist; so it is with a disabled client."""
    disabled = await desk.another()
    async with desk.plane.database.system() as tx:
        await tx.run("system_disable_client", client_id=disabled.client.client_id)
    answers = []
    for client_id, secret in (
        ("jec_" + "a" * 20, desk.secret),
        (desk.client.client_id, "jes_" + "a" * 43),
        (desk.client.client_id, desk.secret[:-1]),
        disabled.basic,
    ):
        body = {} if in_header else {"client_id": client_id, "client_secret": secret}
        auth = (client_id, secret) if in_header else None
        answers.append(
            await desk.http.post("/oauth2/token", data={**GRANT_TYPE, "scope": "orch:read", **body}, auth=auth)
        )

    refused(answers[0], 401, "invalid_client")
    assert answers[0].headers["www-authenticate"].startswith("Basic ")
    for answer in answers[1:]:
        assert (answer.status_code, answer.content) == (answers[0].status_code, answers[0].content)
        assert answer.headers.multi_items() == answers[0].headers.multi_items()


@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_only_post_is_taken(desk: Desk, method: str, path: str) -> None:
    """RFC 6749 section 3.2; the answer says which method is."""
    answer = await desk.http.request(method, path)

    expect_problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("grant_type", "error"),
    [
        (None, "invalid_request"),
        ("", "invalid_request"),
        ("password", "unsupported_grant_type"),
        ("CLIENT_CREDENTIALS", "unsupported_grant_type"),
        ("client_credentials ", "unsupported_grant_type"),
        ("refresh_token", "unsupported_grant_type"),
        ("<script>", "unsupported_grant_type"),
    ],
)
async def test_only_client_credentials_are_granted(desk: Desk, grant_type: str | None, error: str) -> None:
    """The answer does not repeat what was sent."""
    form = {} if grant_type is None else {"grant_type": grant_type}
    answer = await desk.ask(**form, scope="orch:read")

    refused(answer, 400, error)
    assert quote(grant_type or "-") not in answer.text
    assert "<" not in answer.text


async def test_no_answer_repeats_a_secret(desk: Desk) -> None:
    """Whatever field it stood in."""
    for form in ({"scope": desk.secret}, {"tenant": desk.secret}, {"grant_type": desk.secret}):
        answer = await desk.ask(**{**GRANT_TYPE, "scope": "orch:read", **form})
        assert answer.status_code == 400
        assert desk.secret not in answer.text
