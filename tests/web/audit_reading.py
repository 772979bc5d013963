"""What the tests of the audit log over HTTP share: waiting for places, and reading whole lists."""

from typing import Any

from tests.factories import Api, Connection

from jobengine.storage.sequencer import Sequencer


async def settle(api: Api, owner: Connection, tenant_id: str | None = None) -> None:
    """Let everything that was recorded in a log get its place: by the standing sequencer, or by us."""
    sequencer = Sequencer(api.plane.database, "test", api.plane.log_keys)
    waiting = "select 1 from audit_intake where tenant_id = %(log)s limit 1"
    while await (await owner.execute(waiting, {"log": tenant_id or api.tenant_id})).fetchone():
        await sequencer.drain(range(64))


async def read_all(api: Api, path: str, **query: Any) -> list[dict[str, Any]]:
    """Return the items of every page of a list."""
    items: list[dict[str, Any]] = []
    while True:
        answer = await api.get(path, params=query)
        assert answer.status_code == 200, answer.text
        items += answer.json()["items"]
        if (token := answer.json()["next_page_token"]) is None:
            return items
        query["page_token"] = token


async def grow(api: Api, owner: Connection, amount: int) -> list[dict[str, Any]]:
    """Cause *amount* entries and return the whole list of the log."""
    quota = await api.quota(f"type-{amount}")
    for number in range(amount - 1):
        move = "resume" if number % 2 else "pause"
        assert (await api.post(f"/quotas/{quota['quota_id']}/{move}")).status_code == 200
    await settle(api, owner)
    return await read_all(api, "/audit/entries")
