"""The export: bytes over HTTP, handed to the offline verifier as a stranger would."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

import httpx2
import pytest
import uvicorn
from litestar import Litestar
from tests.factories import API, INTENTS, Api, Connection, expect_problem, make_api, revoke_token
from tests.web.audit_reading import grow, read_all, settle

from jobengine.clock import utc_now
from jobengine.ids import new_id
from jobengine.tenancy.model import PLATFORM
from jobengine.web import audit_export as module
from jobengine_verify.notes import parse_key
from jobengine_verify.verify import Intact, Named, Tampered, check_export

VERIFIER = Path(sys.executable).with_name("jobengine-verify")
INTACT, TAMPERED, CANNOT_CHECK = 0, 1, 2

Save = Callable[[str, bytes], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


async def judge(*arguments: str | Path) -> tuple[int, str]:
    """Run the console script as a process of its own."""
    command = [str(VERIFIER), *map(str, arguments)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


async def export(api: Api, query: str = "") -> bytes:
    answer = await api.get(f"/audit/export{query}")
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_an_export_is_intact_for_a_stranger(api: Api, owner: Connection, save: Save) -> None:
    """The real bytes, the key as the service gives it, and the verifier that shares no code with it."""
    await grow(api, owner, 9)
    earlier = save("earlier", (await api.get("/audit/checkpoint")).content)
    entries = await grow(api, owner, 4)
    file = save("export.ndjson", await export(api))
    key = save("key.txt", (await api.get("/audit/verifier-key")).content)

    code, told = await judge(file, "--key", f"@{key}", "--since", earlier)
    assert code == INTACT
    assert told.startswith(f"INTACT: {len(entries)} entries")
    assert "continues the earlier checkpoint of 9 entries" in told
    assert file.read_bytes().count(b"\n") == 1 + len(entries)


async def test_an_altered_export_is_tampered_for_a_stranger(api: Api, owner: Connection, save: Save) -> None:
    """A changed reason, a missing line, a line too many, the key of another log."""
    entries = await grow(api, owner, 6)
    content = await export(api)
    lines = content.splitlines(keepends=True)
    key = (await api.get("/audit/verifier-key")).text.strip()
    foreign = key.replace(key.split("+")[0], "jobengine/log/0")
    changed = content.replace(b'"launch day"', b'"rainy day"', 1)

    code, told = await judge(save("changed", changed), "--key", key)
    assert (code, entries[0]["entry_id"] in told) == (TAMPERED, True)
    assert (await judge(save("cut", b"".join(lines[:-1])), "--key", key))[0] == TAMPERED
    assert (await judge(save("more", content + lines[-1]), "--key", key))[0] == TAMPERED
    assert (await judge(save("foreign", content), "--key", foreign))[0] == CANNOT_CHECK


async def test_an_export_of_a_damaged_log_names_the_entry(api: Api, owner: Connection) -> None:
    """What the owner of the database changed is exported as it is, and found."""
    entries = await grow(api, owner, 5)
    await owner.execute(
        "update audit_texts set text = 'because' where tenant_id = %(log)s and entry_id = %(entry_id)s",
        {"log": api.tenant_id, "entry_id": entries[3]["entry_id"]},
    )
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())

    match check_export(BytesIO(await export(api)), key):
        case Tampered(_, Named(index, entry_id)):
            assert (index, entry_id) == (3, entries[3]["entry_id"])
        case other:
            pytest.fail(str(other))


async def test_an_export_without_a_deleted_entry_is_tampered(api: Api, owner: Connection) -> None:
    """An entry that is gone is missed: the export has a line less than its checkpoint says."""
    entries = await grow(api, owner, 5)
    where = "where tenant_id = %(log)s and entry_id = %(entry_id)s"
    values = {"log": api.tenant_id, "entry_id": entries[4]["entry_id"]}
    # Its quota points at it; the owner of the database can do away with that as well.
    await owner.execute("set session_replication_role = replica")
    await owner.execute(f"delete from audit_entries {where}".encode(), values)
    await owner.execute("set session_replication_role = default")
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())

    assert isinstance(check_export(BytesIO(await export(api)), key), Tampered)
    assert (await api.get("/audit/verify")).json()["first_bad"] == 4


async def test_an_export_before_the_first_entry_is_intact(api: Api, save: Save) -> None:
    """An empty log has a signed checkpoint too."""
    key = (await api.get("/audit/verifier-key")).text.strip()
    content = await export(api)

    assert content.count(b"\n") == 1
    assert (await judge(save("empty", content), "--key", key))[0] == INTACT


async def test_an_export_goes_up_to_its_own_checkpoint(api: Api, owner: Connection) -> None:
    """Entries that came later are not in it, and neither is its own record."""
    entries = await grow(api, owner, 3)
    first = await export(api)
    await settle(api, owner)
    second = await export(api)

    assert first.count(b"\n") == 1 + len(entries)
    assert second.count(b"\n") == 1 + len(entries) + 1
    assert second.splitlines()[1:-1] == first.splitlines()[1:]


async def test_an_export_is_recorded_before_it_begins(
    api: Api, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who exported how much: committed first, so that no export ever is without its entry."""
    await grow(api, owner, 2)
    checkpoint = (await api.get("/audit/checkpoint")).text.splitlines()
    seen: list[object] = []

    async def begin(*_: object) -> AsyncIterator[bytes]:
        await settle(api, owner)
        seen.extend(await read_all(api, "/audit/entries", action="audit.exported"))
        yield b"begun"

    monkeypatch.setattr(module, "export_log", begin)
    assert await export(api) == b"begun"

    [entry] = seen
    assert isinstance(entry, dict)
    assert entry["resource"] == {"type": "audit_log", "id": checkpoint[0]}
    assert entry["properties"]["entries"] == 2
    assert entry["actor"]["client_id"] == "jec_test"
    assert entry["outcome"] == "success"


async def test_the_platform_export_is_recorded_in_the_platform_log(
    governor: Api, owner: Connection, save: Save
) -> None:
    """Under the reason that the governor gave, in the log that was read."""
    speaking = governor.speaking("orch:govern", **INTENTS)
    await settle(governor, owner, PLATFORM)
    content = await export(speaking, "?log=platform")
    key = (await governor.get("/audit/verifier-key?log=platform")).text.strip()
    assert (await judge(save("platform", content), "--key", key))[0] == INTACT

    await settle(governor, owner, PLATFORM)
    entry = (await read_all(governor, "/audit/entries", log="platform", action="audit.exported"))[-1]
    assert (entry["tenant_id"], entry["reason"]) == (None, INTENTS["quota_reason"])
    assert await read_all(governor, "/audit/entries", action="audit.exported") == []


async def test_an_export_says_what_it_is(api: Api) -> None:
    """A file to be saved, and never to be kept by anything in between."""
    answer = await api.get("/audit/export")

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["content-disposition"] == f'attachment; filename="audit-{api.tenant_id}.ndjson"'
    assert answer.headers["cache-control"] == "no-store"


async def test_a_refused_export_leaves_no_record(api: Api, owner: Connection) -> None:
    """Who may not read the log cannot write into it either."""
    expect_problem(await api.speaking("orch:read").get("/audit/export"), 403, "insufficient_scope")
    expect_problem(await api.get("/audit/export?log=platform"), 403, "insufficient_scope")
    await settle(api, owner)

    assert await read_all(api, "/audit/entries") == []


@pytest.fixture
async def served(app: Litestar) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the application behind a real server: only there can an answer break off."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
            yield client
        server.should_exit = True
        await task


class Clock:
    """Runs on by a step at every look."""

    def __init__(self, step: timedelta) -> None:
        self._now, self._step = utc_now(), step

    def __call__(self) -> datetime:
        self._now += self._step
        return self._now


async def test_an_export_breaks_off_when_the_token_ends(
    api: Api, owner: Connection, served: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks, so that a part of an export cannot pass for a whole one."""
    monkeypatch.setattr("jobengine.storage.audit_export.PAGE_ENTRIES", 1)
    await grow(api, owner, 4)
    monkeypatch.setattr(module, "utc_now", Clock(timedelta(seconds=100)))
    speaking = make_api(served, api.plane, api.tenant_id, "orch:audit")

    received: list[bytes] = []
    with pytest.raises(httpx2.RemoteProtocolError):
        await read_export(speaking, received)
    assert b"".join(received).count(b"\n") == 2  # of the 300 s of the token, the third look is beyond


async def read_export(api: Api, received: list[bytes]) -> None:
    headers = {"Authorization": f"Bearer {api.token}"}
    async with api.client.stream("GET", f"{API}/audit/export", headers=headers) as answer:
        assert answer.status_code == 200
        async for chunk in answer.aiter_bytes():
            received += [chunk]


async def test_an_export_breaks_off_when_the_token_is_revoked(
    api: Api, owner: Connection, served: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What must not begin with a token must not go on with it."""
    await grow(api, owner, 4)
    token_id = new_id()
    speaking = make_api(served, api.plane, api.tenant_id, "orch:audit", jti=token_id)
    record = module._record_export

    async def revoke_meanwhile(edge: module.Edge, asked: module.Export) -> object:
        wanted = await record(edge, asked)
        await revoke_token(edge.plane, edge.tenant_id, token_id)
        return wanted

    monkeypatch.setattr(module, "_record_export", revoke_meanwhile)
    with pytest.raises(httpx2.RemoteProtocolError):
        await speaking.get("/audit/export")


async def test_a_whole_export_arrives_over_a_real_connection(
    api: Api, owner: Connection, served: httpx2.AsyncClient
) -> None:
    """In pieces or not: the same bytes."""
    await grow(api, owner, 4)
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())
    content = await export(make_api(served, api.plane, api.tenant_id, "orch:audit"))

    found = check_export(BytesIO(content), key)
    assert isinstance(found, Intact)
    assert found.checkpoint.size == 4
