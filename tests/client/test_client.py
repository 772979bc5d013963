"""The client for threads against a real server."""

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.callers import Caller, done
from tests.acceptance.serving import Server, eventually, free_port
from tests.client.conftest import client_of
from tests.client.wire import wire_to

from jobengine.client import (
    AuthError,
    Client,
    Denied,
    JobIdConflict,
    Lease,
    LeaseLost,
    Refused,
    Unavailable,
)

PATIENT = 30.0


def active(admin: Caller) -> int:
    """Return how many slots are held."""
    [quota] = admin.items("/quotas")
    return quota["usage"]["active"]


def force_out(admin: Caller, lease: Lease) -> None:
    """End a lease against its holder's will."""
    done(admin.send("DELETE", f"/admissions/{lease.grant.lease_id}"), 204)


def test_a_lease_holds_its_slots_for_the_block_and_not_longer(admin: Caller, client: Client) -> None:
    """They are free at its end, whether or not something was raised."""
    admin.quota(max_active=3)

    with client.lease("scan", slots=2) as lease:
        inside = active(admin)
        assert (lease.grant.slots, lease.lost) == (2, False)
    after = active(admin)
    with pytest.raises(ZeroDivisionError), client.lease("scan"):
        raise ZeroDivisionError

    assert (inside, after, active(admin)) == (2, 0, 0)
    with pytest.raises(LeaseLost):
        client.renew(lease.grant)


def test_a_lease_is_renewed_while_the_block_runs(admin: Caller, client: Client) -> None:
    """Its end moves on again and again, and stays ahead."""
    admin.quota(max_active=1)

    with client.lease("scan", lease_seconds=5) as lease:
        first = lease.grant
        eventually(lambda: lease.grant.valid_until > first.valid_until + 5, 30, "a life longer than a lease's")

        assert (lease.lost, active(admin)) == (False, 1)
        assert (lease.grant.fencing_token, lease.grant.lease_id) == (first.fencing_token, first.lease_id)
        assert lease.grant.expires_at > first.expires_at


def test_a_block_that_keeps_its_processor_busy_keeps_its_lease(admin: Caller, client: Client) -> None:
    """Prefect 19068 and 21925: work that never paused starved the renewal, and healthy runs were killed."""
    admin.quota(max_active=1)

    with client.lease("scan", lease_seconds=5) as lease:
        first = lease.grant
        while lease.grant.valid_until < first.valid_until + 3:
            lease.check()
            sum(number * number for number in range(50_000))

    assert lease.grant.expires_at > first.expires_at


def test_a_block_whose_lease_was_forced_out_learns_of_it(admin: Caller, client: Client) -> None:
    """From the flag and from the check while it runs, and from its end when it did not look."""
    admin.quota(max_active=1)

    def work() -> None:
        with client.lease("scan", lease_seconds=5) as lease:
            lease.check()
            force_out(admin, lease)
            eventually(lambda: lease.lost, 30, "a lost lease")
            lease.check()

    def work_without_a_look() -> None:
        with client.lease("scan") as lease:
            force_out(admin, lease)

    for block in (work, work_without_a_look):
        with pytest.raises(LeaseLost):
            block()


def test_an_error_of_the_block_is_not_hidden_by_the_loss(admin: Caller, client: Client) -> None:
    """What went wrong in the work is what is raised."""
    admin.quota(max_active=1)

    with pytest.raises(ZeroDivisionError), client.lease("scan") as lease:  # noqa: PT012 - the loss comes first
        force_out(admin, lease)
        raise ZeroDivisionError


def test_a_lease_whose_server_is_away_for_too_long_is_lost(admin: Caller, running: Server) -> None:
    """Nobody could confirm it in time; the server, which could be reached by others, sees it end as well."""
    admin.quota(max_active=1)

    with wire_to(running.port) as wire, client_of(admin, wire.url) as client:

        def work() -> None:
            with client.lease("scan", lease_seconds=5) as lease:
                wire.cut()
                eventually(lambda: lease.lost, 30, "a lost lease")

        with pytest.raises(LeaseLost, match="could not be renewed"):
            work()
    eventually(lambda: active(admin) == 0, 30, "a free slot")


def test_a_denial_names_every_limit_that_blocks(admin: Caller, client: Client) -> None:
    """With its numbers; who only tries gets None."""
    quota = admin.quota(max_active=1, burst=1, refill_per_second=0.01)

    with client.lease("scan"):
        with pytest.raises(Denied) as denied:
            client.acquire("scan")
        assert client.try_acquire("scan") is None

    blocking = {found.limit: found for found in denied.value.blocking}
    assert set(blocking) == {"max_active", "rate"}
    found = blocking["max_active"]
    assert (found.quota_id, found.maximum, found.used, found.requested) == (quota["quota_id"], 1, 1, 1)
    assert denied.value.retry_after is not None


def test_nobody_waits_where_waiting_cannot_help(admin: Caller, client: Client) -> None:
    """A paused quota denies at once, however long the caller would have waited."""
    quota = admin.quota()
    done(admin.post(f"/quotas/{quota['quota_id']}/pause"), 200)

    with pytest.raises(Denied) as denied, client.lease("scan", wait=36_000):
        pytest.fail("it is paused")

    assert [found.limit for found in denied.value.blocking] == ["paused"]


def test_a_slot_that_becomes_free_is_taken_by_who_waits(admin: Caller, client: Client) -> None:
    """Long before the lease that blocked it would have ended by itself."""
    admin.quota(max_active=1)
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with client.lease("scan", lease_seconds=3600):
            entered.set()
            go_on.wait(PATIENT)

    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(hold)
        assert entered.wait(PATIENT)
        threading.Timer(0.3, go_on.set).start()
        with client.lease("scan", wait=PATIENT) as lease:
            assert lease.grant.fencing_token == 2
        holder.result(PATIENT)


def test_a_token_that_is_refilled_is_waited_for(admin: Caller, client: Client) -> None:
    """A burst of one and two a second: the third lease comes about a second later, and nobody is told no."""
    admin.quota(burst=1, refill_per_second=2)

    tokens = [client.acquire("scan", wait=PATIENT).fencing_token for _ in range(3)]

    assert tokens == [1, 2, 3]


def test_many_threads_share_a_client_and_never_a_slot_too_many(admin: Caller, client: Client) -> None:
    """Two slots, eight threads: all get their turn."""
    admin.quota(max_active=2, max_per_hour=1000, burst=1000, refill_per_second=1000)
    lock, inside, most = threading.Lock(), 0, 0

    def work(_: int) -> int:
        nonlocal inside, most
        with client.lease("scan", wait=90) as lease:
            with lock:
                inside += 1
                most = max(most, inside)
            lease.check()
            with lock:
                inside -= 1
            return lease.grant.fencing_token

    with ThreadPoolExecutor(8) as threads:
        tokens = list(threads.map(work, range(24)))

    assert (sorted(tokens), active(admin)) == (list(range(1, 25)), 0)
    assert most <= 2


def test_a_job_that_has_a_lease_gets_the_same_one(admin: Caller, client: Client) -> None:
    """Asked with other words it is a conflict."""
    admin.quota()

    first = client.acquire("scan", job_id="nightly")
    again = client.acquire("scan", job_id="nightly")

    assert (first.repeated, again.repeated) == (False, True)
    assert (again.lease_id, again.fencing_token, active(admin)) == (first.lease_id, first.fencing_token, 1)
    with pytest.raises(JobIdConflict):
        client.acquire("scan", job_id="nightly", slots=2)


def test_a_lost_answer_takes_no_second_slot(admin: Caller, running: Server) -> None:
    """The server granted, the answer never came: the repeat brings the same lease, and a lost release is no error."""
    admin.quota(max_active=1)

    with wire_to(running.port) as wire, client_of(admin, wire.url) as client:
        wire.losing = b"POST /api/v1/admissions HTTP"
        with client.lease("scan") as lease:
            assert (wire.lost, lease.grant.fencing_token, active(admin)) == (1, 1, 1)
            wire.losing = b"/release HTTP"
        assert (wire.lost, active(admin)) == (2, 0)


def test_a_grant_that_is_over_can_neither_be_renewed_nor_hurt_the_next(admin: Caller, client: Client) -> None:
    """Releasing twice is fine; the fencing token of the first says nothing about the second."""
    admin.quota(max_active=1)
    first = client.acquire("scan")
    client.release(first)
    second = client.acquire("scan")

    client.release(first)
    with pytest.raises(LeaseLost):
        client.renew(first)

    assert (second.fencing_token, client.renew(second).fencing_token, active(admin)) == (2, 2, 1)


def test_a_revoked_token_is_replaced_without_a_word(admin: Caller, client: Client) -> None:
    """One refusal costs one more token, and no lease."""
    admin.quota()
    client.acquire("scan")
    token = client._dialogue._token
    auth = (admin.credentials.client_id, admin.credentials.secret)
    assert admin.http.post(f"{admin.url}/oauth2/revoke", data={"token": token}, auth=auth).status_code == 200
    refused = admin.bearing(token or "")
    eventually(lambda: refused.post("/admissions", {"job_type": "scan"}).status_code == 401, 30, "a refused token")

    client.acquire("scan")

    assert client._dialogue._token != token


def test_who_may_not_ask_is_told_so(admin: Caller, running: Server) -> None:
    """A wrong secret, another's tenant, a role without admission: one kind of error, each with its code."""
    known = admin.credentials
    viewer = running.installation.create_client("viewer", [admin.tenant], ["Orch.Viewer"])
    cases = {
        "invalid_client": (known.client_id, "jes_wrong", admin.tenant),
        "invalid_request": (known.client_id, known.secret, "somebody-else"),
        "invalid_scope": (viewer.client_id, viewer.secret, admin.tenant),
    }

    for code, (client_id, secret, tenant) in cases.items():
        with Client(admin.url, client_id, secret, tenant=tenant) as client, pytest.raises(AuthError) as refused:
            client.acquire("scan")
        assert (refused.value.code, secret in str(refused.value)) == (code, False)


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"slots": 0}, "validation_failed"),
        ({"slots": 99}, "slots_exceed_limit"),
        ({"lease_seconds": 4}, "validation_failed"),
        ({"job_id": "\x00"}, "validation_failed"),
    ],
)
def test_a_wrong_request_is_refused_with_its_code(
    admin: Caller, client: Client, wanted: dict[str, Any], code: str
) -> None:
    """Repeating it would not help."""
    admin.quota()

    with pytest.raises(Refused) as refused:
        client.acquire("scan", **wanted)

    assert (refused.value.code, refused.value.status) == (code, 422)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """After a few tries, and never a library's own error; nor is what is no address."""
    with Client(f"http://127.0.0.1:{free_port()}", "jec_1", "jes_1") as client, pytest.raises(Unavailable):
        client.try_acquire("scan")
    with pytest.raises(ValueError, match="not the address"):
        Client("localhost:8080", "jec_1", "jes_1")


def test_a_closed_client_asks_nobody(client: Client) -> None:
    """It says so, as an error of its own tree; a lease that is never entered knows nothing."""
    with pytest.raises(RuntimeError, match="enter"):
        client.lease("scan").check()
    client.close()

    with pytest.raises(Unavailable, match="closed"):
        client.acquire("scan")


def test_a_forked_child_leaves_its_parents_lease_alone(admin: Caller, client: Client, tmp_path: Path) -> None:
    """It may use the client over connections of its own; leaving the block in the child gives nothing back."""
    admin.quota(max_active=2)
    result = tmp_path / "child"

    with client.lease("scan") as lease:
        mine = client.lease("scan")
        with warnings.catch_warnings():
            # Newer Pythons warn of threads that a child does not have: the renewing one is what this is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                lease.__exit__(None, None, None)
                with mine as second:
                    result.write_text(str(second.grant.fencing_token))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

        assert (result.read_text(), active(admin)) == ("2", 1)
        assert client.renew(lease.grant).fencing_token == 1
