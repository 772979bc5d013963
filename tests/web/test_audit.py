"""The audit log over HTTP: reading it, proving from it, checking it."""

from typing import Any

import pytest
from tests.factories import INTENTS, Api, Connection, expect_problem
from tests.web.audit_reading import grow, read_all, settle

from jobengine.audit.merkle import EMPTY_ROOT, verify_inclusion
from jobengine.ids import new_id
from jobengine.tenancy.model import PLATFORM
from jobengine_verify.notes import open_checkpoint, parse_key

PATHS = (
    "/audit/entries",
    "/audit/entries/0198c0de-0000-7000-8000-000000000000",
    "/audit/entries/0198c0de-0000-7000-8000-000000000000/proof",
    "/audit/checkpoint",
    "/audit/verifier-key",
    "/audit/tile/0/000",
    "/audit/verify",
    "/audit/export",
)


async def test_a_change_is_found_in_the_log_with_its_reason(api: Api, owner: Connection) -> None:
    """Who, what, when, why and under which token: the entry of a change, and the change as the quota shows it."""
    quota = await api.quota("scan")
    await settle(api, owner)

    [entry] = await read_all(api, "/audit/entries")
    assert entry["action"] == "quota.created"
    assert entry["entry_id"] == quota["last_change"]["audit_entry_id"]
    assert entry["tenant_id"] == api.tenant_id
    assert entry["actor"] == {"type": "client", "id": "ops", "client_id": "jec_test"}
    assert entry["resource"] == {"type": "quota", "id": quota["quota_id"]}
    assert (entry["reason"], entry["ticket"]) == (INTENTS["quota_reason"], INTENTS["quota_ticket"])
    assert entry["properties"]["quota.reason"] == INTENTS["quota_reason"]
    assert entry["sequence"] == 0
    assert (await api.get(f"/audit/entries/{entry['entry_id']}")).json() == entry


async def test_an_entry_waits_for_its_place_in_the_open(api: Api, owner: Connection) -> None:
    """Until then its sequence is null, lists leave it out, and a proof is too early."""
    async with owner.transaction():
        # The head held fast keeps every sequencer away.
        await owner.execute("select 1 from audit_logs where tenant_id = %(log)s for update", {"log": api.tenant_id})
        entry_id = (await api.quota())["last_change"]["audit_entry_id"]

        assert (await api.get(f"/audit/entries/{entry_id}")).json()["sequence"] is None
        assert await read_all(api, "/audit/entries") == []
        expect_problem(await api.get(f"/audit/entries/{entry_id}/proof"), 409, "conflict")

    await settle(api, owner)
    assert (await api.get(f"/audit/entries/{entry_id}")).json()["sequence"] == 0
    assert (await api.get(f"/audit/entries/{entry_id}/proof")).status_code == 200


async def test_pages_of_a_list_join_without_a_seam(api: Api, owner: Connection) -> None:
    """Oldest first, each once, whatever the size of a page."""
    entries = await grow(api, owner, 7)

    assert [entry["sequence"] for entry in entries] == list(range(7))
    for size in (1, 3, 7):
        assert await read_all(api, "/audit/entries", page_size=size) == entries


async def test_a_page_token_belongs_to_its_filters(api: Api, owner: Connection) -> None:
    """A token continues the list that it was made for and no other."""
    await grow(api, owner, 5)
    token = (await api.get("/audit/entries?page_size=1&action=quota.paused")).json()["next_page_token"]

    assert (await api.get("/audit/entries", params={"action": "quota.paused", "page_token": token})).status_code == 200
    for query in ({}, {"action": "quota.resumed"}, {"action": "quota.paused", "actor": "ops"}):
        expect_problem(await api.get("/audit/entries", params=query | {"page_token": token}), 422, "page_token_invalid")


async def test_filters_keep_what_they_name(api: Api, owner: Connection) -> None:
    """By action, resource, actor and time."""
    entries = await grow(api, owner, 5)
    quota_id = entries[0]["resource"]["id"]
    moment = entries[2]["occurred_at"]

    async def found(**query: str) -> list[int]:
        return [entry["sequence"] for entry in await read_all(api, "/audit/entries", **query)]

    assert await found(action="quota.paused") == [1, 3]
    assert await found(resource_type="quota", resource_id=quota_id) == [0, 1, 2, 3, 4]
    assert await found(resource_id=new_id()) == []
    assert await found(actor="ops") == [0, 1, 2, 3, 4]
    assert await found(actor="nobody") == []
    assert await found(since=moment) == [2, 3, 4]
    assert await found(until=moment) == [0, 1]
    assert await found(since=moment, until=moment) == []


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("action=quota.exploded", "action"),
        ("log=tenant", "log"),
        ("since=2026-01-01", "since"),
        ("until=2026-01-01T00:00:00%2B01:00", "until"),
        ("since=2026-01-01T00:00:00.0000001Z", "since"),
        (f"actor={'x' * 257}", "actor"),
        ("resource_id=a%00b", "resource_id"),
        ("page_size=0", "page_size"),
        ("page_size=501", "page_size"),
        ("order=newest", "order"),
    ],
)
async def test_a_filter_that_means_nothing_is_refused(api: Api, query: str, path: str) -> None:
    """An unknown action, a sloppy time or a stray parameter would silently show too much or too little."""
    problem = expect_problem(await api.get(f"/audit/entries?{query}"), 422, "validation_failed")

    assert [error["path"] for error in problem["errors"]] == [path]


@pytest.mark.parametrize("path", PATHS)
async def test_the_log_needs_the_scope_for_it(api: Api, path: str) -> None:
    """No other scope opens the log of a tenant, and none but orch:govern the platform's."""
    everything_else = ("orch:read", "orch:operate", "orch:quota", "orch:backfill", "orch:admit", "orch:execute")
    problem = expect_problem(await api.speaking(*everything_else).get(path), 403, "insufficient_scope")
    assert problem["required_scope"] == "orch:audit"

    auditor = api.speaking("orch:audit")
    assert (await auditor.get(path)).status_code in {200, 404}
    problem = expect_problem(await auditor.get(f"{path}?log=platform"), 403, "insufficient_scope")
    assert problem["required_scope"] == "orch:govern"


@pytest.mark.parametrize("path", PATHS)
async def test_a_governor_reads_every_log(governor: Api, stranger: Api, path: str) -> None:
    """The platform's, the own tenant's, and by header any other tenant's."""
    for options in ({"params": {"log": "platform"}}, {}, {"headers": {"X-StellaOps-Tenant": stranger.tenant_id}}):
        assert (await governor.get(path, **options)).status_code in {200, 404}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_an_entry_cannot_be_changed(api: Api, owner: Connection, method: str) -> None:
    """There is no way to write into the log."""
    [entry] = await grow(api, owner, 1)
    for path in ("/audit/entries", f"/audit/entries/{entry['entry_id']}"):
        expect_problem(await api.send(method, path), 405, "method_not_allowed")


@pytest.mark.parametrize("suffix", ["", "/proof"])
async def test_an_entry_of_another_tenant_does_not_exist(
    api: Api, stranger: Api, owner: Connection, suffix: str
) -> None:
    """The answer is the same as for an entry that never was, and for an id that is none."""
    [entry] = await grow(stranger, owner, 1)
    answers = [
        expect_problem(await api.get(f"/audit/entries/{entry_id}{suffix}"), 404, "not_found")
        for entry_id in (entry["entry_id"], new_id(), "7", entry["entry_id"].upper())
    ]

    assert len({answer["detail"] for answer in answers}) == 1
    assert await read_all(api, "/audit/entries") == []


async def test_the_platform_log_holds_what_belongs_to_no_tenant(api: Api, governor: Api, owner: Connection) -> None:
    """A change of the policy stands there, and not in the log of the governor's tenant."""
    speaking = governor.speaking("orch:govern", **INTENTS)
    assert (await speaking.put("/policy", {"backfill_share": 0.5})).status_code == 200
    await settle(governor, owner, PLATFORM)

    entry = (await read_all(governor, "/audit/entries", log="platform", action="policy.changed"))[-1]
    assert entry["tenant_id"] is None
    assert entry["reason"] == INTENTS["quota_reason"]
    assert (await governor.get(f"/audit/entries/{entry['entry_id']}?log=platform")).json() == entry
    assert (await governor.get(f"/audit/entries/{entry['entry_id']}")).status_code == 404
    assert await read_all(api, "/audit/entries", action="policy.changed") == []


async def test_a_checkpoint_is_signed_by_the_verifier_key(api: Api, governor: Api, owner: Connection) -> None:
    """Of the tenant's log and of the platform's, each under its own name, from before the first entry on."""
    origins: set[str] = set()
    for reader, query in ((api, ""), (governor, "?log=platform")):
        answer = await reader.get(f"/audit/verifier-key{query}")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text.count("\n") == 1
        key = parse_key(answer.text.strip())
        note = await reader.get(f"/audit/checkpoint{query}")
        assert note.headers["content-type"] == "text/plain; charset=utf-8"
        checkpoint = open_checkpoint(note.content.decode(), key)
        if reader is api:
            assert (checkpoint.size, checkpoint.root) == (0, EMPTY_ROOT)
        origins.add(checkpoint.origin)

    assert len(origins) == 2
    assert not any(api.tenant_id in origin for origin in origins)
    entries = await grow(api, owner, 3)
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())
    assert open_checkpoint((await api.get("/audit/checkpoint")).text, key).size == len(entries)


async def test_every_entry_has_a_proof_that_holds(api: Api, owner: Connection) -> None:
    """From the leaf hash by RFC 9162 to the root that the checkpoint signs."""
    entries = await grow(api, owner, 11)
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())
    for entry in entries:
        proof: dict[str, Any] = (await api.get(f"/audit/entries/{entry['entry_id']}/proof")).json()
        assert proof.keys() == {"leaf_index", "tree_size", "root_hash", "hashes", "checkpoint"}
        index, size, root = proof["leaf_index"], proof["tree_size"], bytes.fromhex(proof["root_hash"])
        assert (index, size) == (entry["sequence"], len(entries))
        path = [bytes.fromhex(item) for item in proof["hashes"]]
        assert verify_inclusion(index, size, bytes.fromhex(entry["leaf_hash"]), path, root)
        signed = open_checkpoint(proof["checkpoint"], key)
        assert (signed.size, signed.root) == (size, root)


async def test_a_proof_from_a_damaged_tree_is_refused(api: Api, owner: Connection) -> None:
    """Where a node is gone there is no proof, and the answer says where to look."""
    entries = await grow(api, owner, 4)
    await owner.execute("delete from audit_nodes where tenant_id = %(log)s", {"log": api.tenant_id})

    problem = expect_problem(await api.get(f"/audit/entries/{entries[0]['entry_id']}/proof"), 500, "internal_error")
    assert "/audit/verify" in problem["detail"]


async def test_tiles_are_the_nodes_of_the_tree(api: Api, owner: Connection) -> None:
    """The tile of level 0 is the leaf hashes in order; what the tree has not grown to is not there."""
    entries = await grow(api, owner, 5)
    answer = await api.get("/audit/tile/0/000.p/5")

    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == b"".join(bytes.fromhex(entry["leaf_hash"]) for entry in entries)
    assert (await api.get("/audit/tile/0/000.p/2")).content == answer.content[:64]
    for path in ("0/000", "0/000.p/6", "0/001.p/1", "1/000.p/1", "0/0", "0/000.p/0", "entries/000", "64/000", "0/000/"):
        expect_problem(await api.get(f"/audit/tile/{path}"), 404, "not_found")


async def test_a_full_tile_may_be_kept_for_ever(api: Api, owner: Connection) -> None:
    """It never changes; a partial one will be overtaken."""
    values = {"log": api.tenant_id}
    await api.quota()
    await settle(api, owner)
    await owner.execute(
        """insert into audit_tree select tenant_id, n, gen_random_uuid(), leaf_hash
        from audit_tree, generate_series(1, 255) n where tenant_id = %(log)s and sequence = 0""",
        values,
    )
    await owner.execute("update audit_logs set size = 256 where tenant_id = %(log)s", values)

    full, partial = [await api.get(f"/audit/tile/{path}") for path in ("0/000", "0/000.p/255")]
    assert len(full.content) == 256 * 32
    assert full.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert partial.headers["cache-control"] == "no-cache"


async def test_a_check_of_an_untouched_log_is_good(api: Api, governor: Api, owner: Connection) -> None:
    """The tenant's and the platform's."""
    entries = await grow(api, owner, 3)
    checkpoint = (await api.get("/audit/checkpoint")).text.splitlines()

    verdict = (await api.get("/audit/verify")).json()
    assert (verdict["ok"], verdict["entries"], verdict["first_bad"]) == (True, len(entries), None)
    assert verdict["entries"] == int(checkpoint[1])
    assert (await governor.get("/audit/verify?log=platform")).json()["ok"] is True


async def test_a_check_names_the_first_bad_place(api: Api, owner: Connection) -> None:
    """An entry that the owner of the database changed is found, and told in words."""
    entries = await grow(api, owner, 4)
    await owner.execute(
        "update audit_entries set actor_id = 'nobody' where tenant_id = %(log)s and entry_id = %(entry_id)s",
        {"log": api.tenant_id, "entry_id": entries[2]["entry_id"]},
    )

    verdict = (await api.get("/audit/verify")).json()
    assert (verdict["ok"], verdict["first_bad"]) == (False, 2)
    assert entries[2]["entry_id"] in verdict["problem"]


async def test_a_refused_change_stands_in_the_log(api: Api, owner: Connection) -> None:
    """A refusal is an outcome too; nothing but its entry is left of it."""
    answer = await api.post("/quotas", {"job_type": "scan", "limits": {
        "max_active": 10**9, "max_per_hour": 1, "burst": 1, "refill_per_second": 1}})  # fmt: skip
    expect_problem(answer, 422, "policy_maximum_exceeded")
    await settle(api, owner)

    [entry] = await read_all(api, "/audit/entries", action="quota.refused")
    assert entry["outcome"] == "refused"
