"""The OpenAPI document against the server that tells it: what it says is sent, and what comes back is as it says."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import APIOperation, Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.acceptance.callers import TENANT_SCOPES
from tests.acceptance.serving import EVERY_ROLE, Server, new_tenants
from tests.contract.deployment import ClientOf, Deployment
from tests.factories import API

from jobengine.clock import format_time, utc_now

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# One answer of it does not end while its backfill runs.
ENDLESS = "FollowBackfill"
FEW = {"deadline": None, "derandomize": True, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}
EXTERNAL = "external"
WINDOW = {"start": "2026-03-01T00:00:00Z", "end": "2026-03-02T00:00:00Z"}
# What they answer depends on work beside the requests: the sequencer's, the dispatcher's.
UNSTEADY = r"/batches/|/audit/(entries|export|verify|checkpoint|tile|consistency)"
# Nothing leads to them or on from them: they would only make the journeys shorter.
APART = r"/allocations|/quota-changes|/quota-requests|/simulate|/policy|/audit/"
JOURNEYS = 25
REACHED = {f"POST {API}/quotas", f"GET {API}/quotas/{{quota_id}}", f"POST {API}/backfills"}


@pytest.fixture(scope="module")
def session(deployment: Deployment) -> Iterator[requests.Session]:
    """Connections that bear a token for everything a tenant may do."""
    with requests.Session() as opened:
        opened.trust_env = False
        opened.headers["Authorization"] = f"Bearer {deployment.everything()}"
        yield opened


@pytest.fixture(scope="module")
def described(deployment: Deployment) -> Any:
    """The document as the server tells it."""
    document = deployment.send("GET", "/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=deployment.url)
    return schema.exclude(operation_id_regex=ENDLESS)


def operations(described: Any, mode: GenerationMode) -> list[APIOperation]:
    found = [operation.ok() for operation in described.get_all_operations()]
    # What takes nothing can be sent nothing wrong.
    return [each for each in found if mode is GenerationMode.POSITIVE or takes_something(each)]


def takes_something(operation: APIOperation) -> bool:
    return bool(operation.definition.raw.get("parameters") or operation.definition.raw.get("requestBody"))


def judge(case: Case, session: requests.Session) -> Response:
    answer = case.call(session=session, timeout=30)
    case.validate_response(answer, checks=CHECKS)
    return answer


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_every_operation_answers_as_the_document_says(
    described: Any, session: requests.Session, mode: GenerationMode
) -> None:
    """Whatever is sent, as described or not: no 5xx, no status, type, header or schema that it does not tell."""
    for operation in operations(described, mode):

        @settings(max_examples=5, **FEW)
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Case) -> None:
            judge(case, session)

        holds()


@pytest.fixture(scope="module")
def travellers(running: Server, deployment: Deployment) -> Iterator[str]:
    """Tokens for tenants that are empty: what a journey meets is what it made itself."""
    made = running.installation.create_client("journeys", new_tenants(JOURNEYS * 3), EVERY_ROLE)
    clients = (ClientOf(made.client_id, made.secret, tenant) for tenant in made.tenants)
    return (deployment.token(client, *TENANT_SCOPES) for client in clients)


def test_what_one_operation_gives_the_next_one_takes(
    described: Any, session: requests.Session, travellers: Iterator[str]
) -> None:
    """Along the links of the document: quotas made, changed and deleted, leases renewed, backfills moved."""
    done: set[str] = set()

    steady = described.exclude(path_regex=f"{UNSTEADY}|{APART}")

    class Journey(steady.as_state_machine()):
        def setup(self) -> None:
            session.headers["Authorization"] = f"Bearer {next(travellers)}"

        def before_call(self, case: Case) -> None:
            make_likely(case)

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:  # noqa: ARG002 - the name is that of the library
            return {"session": session, "timeout": 30}

        def validate_response(self, response: Response, case: Case, **_: Any) -> None:
            case.validate_response(response, checks=CHECKS)
            if response.status_code < 300:
                done.add(case.operation.label)

    run_state_machine_as_test(Journey, settings=settings(max_examples=JOURNEYS, stateful_step_count=8, **FEW))

    assert done >= REACHED


def make_likely(case: Case) -> None:
    """Choose what no schema can tell: the one job type that the server knows, a window of the past, and limits."""
    body = case.body
    if not isinstance(body, dict):
        return
    if case.operation.path in {f"{API}/backfills", f"{API}/backfills/preview"} and "window" in body:
        body |= {"job_type": EXTERNAL, "window": WINDOW, "partition": "PT6H"}
        body.pop("plan_token", None)
    if isinstance(limits := body.get("limits"), dict):
        adding = case.operation.path.endswith("/overrides")
        body["limits"] = {name: 60 if adding else round(min(value, 50)) for name, value in limits.items() if value}
    if "until" in body:
        body |= {"until": format_time(utc_now() + timedelta(hours=1)), "starts_at": None}
    if "slots" in body:
        body["slots"] = 1
    if "job_types" in body:
        body["job_types"] = [EXTERNAL]
    case.headers.pop("X-StellaOps-Tenant", None)
    case.headers.pop("If-Match", None)
    case.headers.pop("Idempotency-Key", None)
