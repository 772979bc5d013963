"""Servers and databases shot under a load of admissions, at random moments.

JOBENGINE_TEST_KILLS says how often; `make soak` shoots longer. JOBENGINE_TEST_SEED repeats the moments of a run.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic, sleep

import httpx2
from tests.acceptance.callers import ROOMY, Caller, done
from tests.acceptance.holders import Holders
from tests.acceptance.serving import EVERY_ROLE, Installation, Server, eventually, new_tenants, serving

KILLS = int(os.environ.get("JOBENGINE_TEST_KILLS", "3"))
SEED = int(os.environ.get("JOBENGINE_TEST_SEED", int.from_bytes(os.urandom(4))))
RECOVERY_SECONDS = 90
KEPT, BRIEF = 8, 4
LEASE_SECONDS = 5


class Shooting:
    """One installation, its quotas, and what the holders of its leases were told in each round."""

    def __init__(self, http: httpx2.Client, folder: Path) -> None:
        self.installation = Installation.make(folder)
        self.credentials = self.installation.create_client("ours", new_tenants(1), EVERY_ROLE)
        self.http = http
        self.random = Random(SEED)  # noqa: S311 - moments to be repeated
        self.tokens: list[int] = []

    def caller(self, server: Server) -> Caller:
        """Speak to a server."""
        return Caller(self.http, server.url, self.credentials, self.credentials.tenants[0])

    def under_load(self, server: Server, shoot: Callable[[Server], None]) -> tuple[Holders, float]:
        """Let holders work, shoot, and return what they were told and when what was shot had surely ended."""
        caller = self.caller(server)
        caller.token()
        kept = Holders(caller, "kept", 3_600, gives_back=True, seed=self.random.getrandbits(32))
        brief = Holders(caller, "brief", LEASE_SECONDS, gives_back=False, seed=self.random.getrandbits(32))
        with kept, brief:
            sleep(0.5 + self.random.random() * 2)
            shoot(server)
            gone = monotonic()
        assert (kept.most_at_once() <= KEPT, brief.most_at_once() <= BRIEF) == (True, True)
        assert kept.held, "nothing was acknowledged before the shot"
        self.tokens += [held.lease["fencing_token"] for held in kept.held]
        return kept, gone

    def judge(self, server: Server, kept: Holders, gone: float) -> None:
        """Hold what there is now against what was told before."""
        caller = self.caller(server)
        live = {lease["lease_id"]: lease for lease in caller.items("/admissions", job_type="kept")}
        assert len(live) <= KEPT
        for lease in kept.kept():
            token = {"fencing_token": lease["fencing_token"]}
            assert live[lease["lease_id"]] == lease
            done(caller.post(f"/admissions/{lease['lease_id']}/renew", token), 200)
        self.wait_for_brief_slots(caller, gone)
        assert caller.get("/quotas/drift")["drift"] == 0
        # The next round begins with free slots; what nobody was told of is ended by an operator.
        for lease_id in live:
            done(caller.send("DELETE", f"/admissions/{lease_id}"), 204)

    def wait_for_brief_slots(self, caller: Caller, gone: float) -> None:
        """Whatever was granted, told or not, has ended a second after a lease's length: then every slot is free."""
        body = {"job_type": "brief", "slots": BRIEF, "lease_seconds": LEASE_SECONDS}

        def look() -> httpx2.Response | None:
            asked = monotonic()
            answer = caller.post("/admissions", body)
            assert answer.status_code == 201 or asked <= gone + LEASE_SECONDS + 1, answer.text
            return answer if answer.status_code == 201 else None

        lease = done(eventually(look, RECOVERY_SECONDS, "free slots"), 201)
        done(caller.post(f"/admissions/{lease['lease_id']}/release", {"fencing_token": lease["fencing_token"]}), 204)


def shoot_server(server: Server) -> None:
    """Kill -9."""
    server.kill()


def shoot_postgres(server: Server) -> None:
    """Kill -9 of the database's first process; the others notice and end."""
    before = server.installation.postgres_pids()
    os.kill(server.installation.postmaster(), signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), RECOVERY_SECONDS, "its end")


def answers_again(caller: Caller) -> bool:
    """Tell whether the database is back under its server."""
    with suppress(httpx2.HTTPError):
        return caller.send("GET", "/quotas").status_code == 200
    return False


def test_leases_survive_shots_at_their_server_and_at_its_database(http: httpx2.Client, tmp_path: Path) -> None:
    """No acknowledged lease is lost, none is over the limit, and no slot is held a second past its lease's end."""
    print(f"JOBENGINE_TEST_SEED={SEED}")
    shooting = Shooting(http, tmp_path / "shot")
    try:
        for number in range(KILLS):
            with serving(shooting.installation) as server:
                caller = shooting.caller(server)
                if number == 0:
                    for name, most in (("kept", KEPT), ("brief", BRIEF)):
                        done(caller.post("/quotas", {"job_type": name, "limits": ROOMY | {"max_active": most}}), 201)
                if number % 2:
                    told = shooting.under_load(server, shoot_postgres)
                    eventually(lambda caller=caller: answers_again(caller), RECOVERY_SECONDS, "an answer")
                    shooting.judge(server, *told)
                    continue
                told = shooting.under_load(server, shoot_server)
            with serving(shooting.installation) as again:
                shooting.judge(again, *told)
    finally:
        shooting.installation.clean_up()

    assert len(shooting.tokens) == len(set(shooting.tokens)), "a fencing token was given twice"
