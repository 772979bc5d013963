"""The negative corpus: requests that are wrong in one thing, and the exact answer to each.

The cases are JSON in tests/contract/corpus; README.md there tells the format. They hold for any deployment:

    JOBENGINE_URL=… python -m tests.contract.corpus OWNER_ID:SECRET:TENANT GOVERNOR_ID:SECRET:TENANT
"""

import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any, Final

from tests.contract.deployment import GOVERN, ClientOf, Deployment, Heard

from jobengine.clock import format_time, utc_now

FOLDER: Final = Path(__file__).with_name("corpus")
MISSING: Final = "0198c0de-0000-7000-8000-000000000000"
LIMITS: Final = {"max_active": 5, "max_per_hour": 100, "burst": 10, "refill_per_second": 1.5}
PROBLEM_MEMBERS: Final = {"type", "title", "status", "detail", "code", "trace_id"}

Case = Mapping[str, Any]


def read_cases() -> dict[str, Case]:
    """Return every case under the name of its file and its own."""
    return {
        f"{file.stem}: {case['name']}": case
        for file in sorted(FOLDER.glob("*.json"))
        for case in json.loads(file.read_text("utf-8"))
    }


@dataclass(frozen=True, slots=True)
class Stage:
    """A deployment with one quota and one lease, and the words that cases name."""

    deployment: Deployment
    words: Mapping[str, str]
    tokens: Mapping[str, str]

    @classmethod
    def build(cls, deployment: Deployment) -> "Stage":
        """Make what the cases speak of: a quota of the job type `corpus`, and a lease that lives for an hour."""
        owner = deployment.owner
        token = deployment.everything()
        quota = deployment.call(token, "POST", "/quotas", {"job_type": "corpus", "limits": LIMITS}).json()
        lease = deployment.call(token, "POST", "/admissions", {"job_type": "leased", "lease_seconds": 3600}).json()
        header, payload, signature = token.split(".")
        wrong = ClientOf(owner.client_id, "wrong", owner.tenant)
        words = {
            "quota": quota["quota_id"], "lease": lease["lease_id"], "missing": MISSING, "tenant": owner.tenant,
            "client_id": owner.client_id, "secret": owner.secret, "basic": owner.basic, "wrong": wrong.basic,
            "token": token, "header": header, "payload": payload, "signature": signature,
            "soon": format_time(utc_now() + timedelta(hours=1)),
        }  # fmt: skip
        tokens = {
            "owner": token,
            "reader": deployment.token(owner, "orch:read"),
            "governor": deployment.token(deployment.governor, GOVERN),
        }
        return cls(deployment, words, tokens)

    def send(self, case: Case) -> Heard:
        """Send the request of *case*."""
        headers = [(name, self._filled(value)) for name, value in case.get("headers", [])]
        who = case.get("as", "owner")
        if who != "nobody":
            headers.append(("Authorization", f"Bearer {self.tokens[who]}"))
        body = self._body(case)
        if "json" in case:
            headers.append(("Content-Type", "application/json"))
        return self.deployment.send(case["method"], self._filled(case["path"]), headers, body)

    def _body(self, case: Case) -> bytes | None:
        if "json" in case:
            return self._filled(json.dumps(case["json"])).encode()
        if "text" in case:
            return self._filled(case["text"]).encode()
        if "base64" in case:
            return base64.b64decode(case["base64"])
        if "parts" in case:
            return b"".join(text.encode() * times for text, times in case["parts"])
        return None

    def _filled(self, text: str) -> str:
        return Template(text).safe_substitute(self.words)


def deviations(case: Case, heard: Heard, secrets: tuple[str, ...]) -> Iterator[str]:
    """Yield what is otherwise in the answer than *case* says; none of *secrets* may stand in it."""
    wanted = case["answer"]
    if heard.status != wanted["status"]:
        yield f"status {heard.status}, not {wanted['status']}"
    if any(secret.encode() in heard.body for secret in secrets):
        yield "a secret is repeated"
    if b"Traceback" in heard.body:
        yield "a stack trace is shown"
    if "challenge" in wanted and wanted["challenge"] not in heard.headers.get("www-authenticate", ""):
        yield f"the challenge is {heard.headers.get('www-authenticate')!r}"
    if "allow" in wanted and {*wanted["allow"]} - {*heard.headers.get("allow", "").replace(" ", "").split(",")}:
        yield f"Allow is {heard.headers.get('allow')!r}"
    yield from _document(wanted, heard)


def _document(wanted: Case, heard: Heard) -> Iterator[str]:
    try:
        document: dict[str, Any] = heard.json()
    except ValueError:
        yield f"no JSON: {heard.body[:200]!r}"
        return
    for member in ("code", "error"):
        if member in wanted and document.get(member) != wanted[member]:
            yield f"{member} {document.get(member)!r}, not {wanted[member]!r}"
    paths = [error.get("path") for error in document.get("errors", [])]
    if "errors" in wanted and paths != wanted["errors"]:
        yield f"errors at {paths}, not {wanted['errors']}"
    if "names" in wanted and wanted["names"] not in document.get("error_description", ""):
        yield f"the description {document.get('error_description')!r} does not name {wanted['names']}"
    if "code" in wanted:
        yield from _problem(document, heard)


def _problem(document: Mapping[str, Any], heard: Heard) -> Iterator[str]:
    if heard.headers.get("content-type") != "application/problem+json":
        yield f"content type {heard.headers.get('content-type')!r}"
    if missing := PROBLEM_MEMBERS - document.keys():
        yield f"the problem lacks {sorted(missing)}"
    if document.get("type") != f"urn:jobengine:problem:{document.get('code')}":
        yield f"type {document.get('type')!r}"


def main() -> int:
    """Run every case against the deployment that the environment names; 0 when each is answered as it says."""
    owner, governor = (ClientOf(*words.split(":")) for words in sys.argv[1:3])
    stage = Stage.build(Deployment(os.environ["JOBENGINE_URL"], owner, governor))
    failed = 0
    for name, case in read_cases().items():
        found = list(deviations(case, stage.send(case), (stage.words["secret"], stage.words["signature"])))
        failed += bool(found)
        for line in found:
            print(f"{name}: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
