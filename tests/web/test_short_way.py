"""Plain admissions are answered before the framework: whoever asks cannot tell which way was taken."""

from typing import Any

import httpx2
import pytest
from tests.factories import LIMITS, Api

# A parameter of the media type changes nothing of what is sent, and is not plain: it takes the long way.
LONG = {"Content-Type": "application/json; charset=utf-8"}
SHORT = {"Content-Type": "application/json"}
OF_EACH = {"date", "x-trace-id"}
UNKNOWN = "0198c0de-0000-7000-8000-000000000000"


def told(answer: httpx2.Response) -> tuple[int, dict[str, str], Any]:
    """Return the answer without what is new in each."""
    headers = {name: value for name, value in answer.headers.items() if name not in OF_EACH}
    body = answer.json() if answer.content else None
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name != "trace_id"}
    return answer.status_code, headers, body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", b'{"job_type": "full"}'),
        ("", b'{"job_type": "scan", "slots": 11}'),
        ("", b'{"job_type": "scan", "slots": 0}'),
        ("", b'{"job_type": "scan", "slotz": 1}'),
        ("", b'{"job_type": "scan", "job_type": "scan"}'),
        ("", b'{"job_type": "scan", "job_id": "\\u0000"}'),
        ("", b"null"),
        ("", b"[]"),
        ("", b""),
        ("", b"{"),
        ("", b'{"job_type": "\xff"}'),
        ("", b"[" * 40 + b"]" * 40),
        ("/", b'{"job_type": "scan"}'),
        ("?slots=1", b'{"job_type": "scan"}'),
        ("/nobody/release", b'{"fencing_token": 1}'),
        (f"/{UNKNOWN}/release", b'{"fencing_token": 1}'),
        (f"/{UNKNOWN}/release", b'{"fencing_token": "1"}'),
        (f"/{UNKNOWN}/renew", b'{"fencing_token": 1}'),
        (f"/{UNKNOWN}/renew", b'{"fencing_token": 1, "lease_seconds": 4}'),
        (f"/{UNKNOWN}/renew/", b'{"fencing_token": 1}'),
        (f"/{UNKNOWN}", b'{"fencing_token": 1}'),
        (f"/{UNKNOWN}/else", b'{"fencing_token": 1}'),
        ("s", b'{"job_type": "scan"}'),
    ],
)
async def test_a_refusal_is_the_same_both_ways(api: Api, path: str, body: bytes) -> None:
    """Status, headers and problem, whatever is wrong."""
    await api.quota()
    await api.quota("full", max_active=0)

    short = await api.send("POST", f"/admissions{path}", content=body, headers=SHORT)
    long = await api.send("POST", f"/admissions{path}", content=body, headers=LONG)

    assert told(short) == told(long)
    assert short.status_code >= 400


async def test_a_lease_lives_the_same_both_ways(api: Api) -> None:
    """Asked for, renewed by the other way, given back twice."""
    await api.quota()
    for first, second in ((SHORT, LONG), (LONG, SHORT)):
        asked = await api.send("POST", "/admissions", content=b'{"job_type": "scan", "job_id": "j"}', headers=first)
        again = await api.send("POST", "/admissions", content=b'{"job_type": "scan", "job_id": "j"}', headers=second)
        lease = asked.json()
        assert (asked.status_code, again.status_code, again.json()) == (201, 200, lease)
        at, word = f"/admissions/{lease['lease_id']}", b'{"fencing_token": %d}' % lease["fencing_token"]
        renewed = await api.send("POST", f"{at}/renew", content=word, headers=second)
        kept = await api.send("POST", f"{at}/renew", content=word, headers=first)
        assert (renewed.status_code, kept.status_code) == (200, 200)
        assert renewed.json().keys() == kept.json().keys() == lease.keys()
        gone = [await api.send("POST", f"{at}/release", content=word, headers=way) for way in (first, second)]
        assert told(gone[0]) == told(gone[1])
        assert gone[0].status_code == 204


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer abc"},
        {"Authorization": "Basic YTpi"},
        {"X-StellaOps-Tenant": "somebody-else"},
        {"X-StellaOps-Tenant": "not a tenant"},
        {"Content-Type": "text/plain"},
        {"Idempotency-Key": "a b"},
    ],
)
async def test_who_may_not_is_told_the_same(api: Api, headers: dict[str, str]) -> None:
    """A bad token, a foreign tenant, another media type: each is refused as on every route."""
    short = await api.post("/admissions", {"job_type": "scan"}, headers=SHORT | headers)
    long = await api.post("/admissions", {"job_type": "scan"}, headers=LONG | headers)

    assert told(short) == told(long)
    assert short.status_code in {400, 401, 403, 415, 422}


async def test_who_lacks_the_scope_is_told_the_same(api: Api) -> None:
    """The challenge names the scope."""
    reader = api.speaking("orch:read")

    short, long = [await reader.post("/admissions", {"job_type": "scan"}, headers=way) for way in (SHORT, LONG)]

    assert told(short) == told(long)
    assert (short.status_code, "orch:admit" in short.headers["www-authenticate"]) == (403, True)


async def test_a_large_body_takes_the_long_way(api: Api) -> None:
    """It is read in pieces and answered all the same."""
    await api.quota()
    body = b'{"job_type": "scan"' + b" " * 100_000 + b"}"

    answer = await api.send("POST", "/admissions", content=body, headers=SHORT)

    assert answer.status_code == 201


async def test_a_length_that_looks_short_opens_no_way_past_the_bound(api: Api) -> None:
    """Zeros in front of its length let no body through that is refused elsewhere."""
    await api.quota()
    body = b'{"job_type": "scan"' + b" " * 2**20 + b"}"
    length = {"Content-Length": f"{len(body):012}"}

    short, long = [await api.send("POST", "/admissions", content=body, headers=way | length) for way in (SHORT, LONG)]

    assert told(short) == told(long)
    assert short.status_code == 413


async def test_a_media_type_that_is_said_twice_is_judged_as_on_every_route(api: Api) -> None:
    """The last one is not taken for the only one."""
    await api.quota()
    said = [("Authorization", f"Bearer {api.token}"), ("Content-Type", "text/plain"), *SHORT.items()]

    answer = await api.client.post("/api/v1/admissions", content=b'{"job_type": "scan"}', headers=said)

    assert answer.status_code == 415


async def test_both_ways_are_counted_by_one_route(api: Api) -> None:
    """Metrics name the route as it is documented, not the path that was sent."""
    await api.post("/quotas", {"job_type": None, "limits": LIMITS})
    lease = (await api.admit()).json()
    at, word = f"/admissions/{lease['lease_id']}", {"fencing_token": lease["fencing_token"]}
    await api.post(f"{at}/renew", word)
    await api.post(f"{at}/renew", word, headers=LONG)
    await api.post(f"{at}/release", word)
    await api.post(f"{at}/release", word, headers=LONG)

    shown = (await api.client.get("/metrics")).text

    for route in ("", "/{lease_id}/renew", "/{lease_id}/release"):
        assert f'route="/api/v1/admissions{route}"' in shown
    assert lease["lease_id"] not in shown
