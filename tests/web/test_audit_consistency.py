"""Proofs over HTTP that a log only grew."""

import pytest
from tests.factories import Api, Connection, expect_problem
from tests.web.audit_reading import grow

from jobengine.audit.merkle import EMPTY_ROOT, verify_consistency
from jobengine_verify.notes import open_checkpoint, parse_key


async def test_a_log_proves_that_it_only_grew(api: Api, owner: Connection) -> None:
    """From every earlier size to the newest, against the checkpoints that were kept."""
    key = parse_key((await api.get("/audit/verifier-key")).text.strip())
    kept = [open_checkpoint((await api.get("/audit/checkpoint")).text, key)]
    for amount in (3, 1, 4):
        await grow(api, owner, amount)
        kept.append(open_checkpoint((await api.get("/audit/checkpoint")).text, key))
    newest = kept[-1]

    for earlier in kept:
        proof = (await api.get(f"/audit/consistency?from={earlier.size}")).json()
        assert (proof["from"], proof["to"]) == (earlier.size, newest.size)
        assert proof["from_root_hash"] == earlier.root.hex()
        assert proof["to_root_hash"] == newest.root.hex()
        assert open_checkpoint(proof["checkpoint"], key) == newest
        path = [bytes.fromhex(item) for item in proof["hashes"]]
        assert verify_consistency(earlier.size, newest.size, earlier.root, newest.root, path)


async def test_a_proof_may_end_before_the_newest(api: Api, owner: Connection) -> None:
    """Between any two sizes that the log has had."""
    await grow(api, owner, 6)

    proof = (await api.get("/audit/consistency?from=2&to=5")).json()
    assert (proof["from"], proof["to"]) == (2, 5)
    assert proof["checkpoint"].splitlines()[1] == "6"


async def test_an_empty_log_continues_nothing(api: Api) -> None:
    """There is one tree of nothing, and it is signed."""
    proof = (await api.get("/audit/consistency?from=0")).json()

    assert (proof["from_root_hash"], proof["to_root_hash"], proof["hashes"]) == (EMPTY_ROOT.hex(),) * 2 + ([],)


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("", "from"),
        ("to=1", "from"),
        ("from=-1", "from"),
        ("from=x", "from"),
        ("from=3&to=2", "from"),
        ("from=1&to=4", "to"),
        ("from=1&to=9999999999999999999999", "to"),
        ("from=1&from=2", "from"),
        ("from_=1", "from_"),
    ],
)
async def test_a_proof_between_sizes_that_never_were_is_refused(
    api: Api, owner: Connection, query: str, path: str
) -> None:
    """Sizes that are none, in the wrong order, beyond the log, or given twice."""
    await grow(api, owner, 3)

    problem = expect_problem(await api.get(f"/audit/consistency?{query}"), 422, "validation_failed")
    assert [error["path"] for error in problem["errors"]] == [path]
