"""``jobengine audit witness`` and ``jobengine witness``: asking witnesses, and being one."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter
from cyclopts.validators import Number

from jobengine.cli.call import TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.show import Columns, print_json, print_note, print_table

if TYPE_CHECKING:
    import httpx2

    from jobengine.audit.checkpoint import VerifierKey
    from jobengine.cli.installation import Plane
    from jobengine.storage.witnesses import Shown, Unwitnessed

app = App(name="witness", default_parameter=Parameter(negative=()))

TIMEOUT_SECONDS: Final = 15
_CONFLICT, _UNPROCESSABLE = 409, 422
_SIZE_TYPE: Final = "text/x.tlog.size"
_MOST_ANSWER_BYTES: Final = 65_536
OUTCOMES: Final[Columns] = {
    "LOG": "log",
    "WITNESS": "witness",
    "SIZE": "size",
    "OUTCOME": "outcome",
    "DETAIL": "detail",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of showing one log to one witness: ``cosigned``, ``contradicted``, ``refused`` or ``unreachable``."""

    log: str
    witness: str
    size: int
    outcome: str
    detail: str | None = None


def ask(
    *,
    every: Annotated[
        int | None, Parameter(validator=Number(gte=1), help="go on, and ask again after so many seconds")
    ] = None,
    call: TheCall,
) -> int:
    """Show the heads of all logs that have grown to the witnesses of JOBENGINE_WITNESSES, and keep what they sign.

    A witness that saw more entries than there are, or another tree, ends this with exit code 1: a log was set back or
    rewritten, on this side or the other.

    Args:
        every: how often.
        call: the global options.
    """
    from jobengine.cli.installation import settings_of, with_plane

    witnesses = _witnesses(settings_of(call.environ).witnesses)

    async def work(plane: "Plane") -> int:
        while True:
            outcomes = [outcome for url, key in witnesses for outcome in await _ask_one(plane, url, key)]
            if call.as_json:
                print_json({"items": [asdict(outcome) for outcome in outcomes]})
            elif outcomes:
                print_table([asdict(outcome) for outcome in outcomes], OUTCOMES)
            end = _end(outcomes)
            if every is None or end == Exit.ERROR:
                return end
            await asyncio.sleep(every)

    return with_plane(call, work)


@app.default
def serve(
    folder: Path,
    /,
    *,
    logs: Path,
    name: str,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8090,
) -> int:
    """Be a witness: cosign the checkpoints of logs that only grow (C2SP tlog-witness), and remember them for ever.

    Put it behind a proxy that speaks TLS; who loses the folder must begin anew, under another name.

    Args:
        folder: where the key and what was seen is kept; made at the first start.
        logs: a file with one vkey a line, those of the logs to watch; it is read again for every request.
        name: what the witness is called, like example.org/witness.
        host: the address to listen on.
        port: the port.
    """
    from jobengine.cli.witness_server import Witness, run

    try:
        witness = Witness(folder, logs, name)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{folder}: {error}", Exit.ERROR) from None
    print_note(f"witness key: {witness.key}")
    return run(witness, host, port)


def _witnesses(settings: Sequence[tuple[str, str]]) -> list[tuple[str, "VerifierKey"]]:
    from jobengine.audit.checkpoint import COSIGNATURE, NoteError, parse_verifier_key

    if not settings:
        raise CommandFailed("there are no witnesses", Exit.USAGE, hint="set JOBENGINE_WITNESSES")
    try:
        return [(url, parse_verifier_key(key, COSIGNATURE)) for url, key in settings]
    except NoteError as error:
        raise CommandFailed(f"JOBENGINE_WITNESSES: {error}", Exit.USAGE) from None


async def _ask_one(plane: "Plane", url: str, key: "VerifierKey") -> list[Outcome]:
    import httpx2

    from jobengine.storage.witnesses import find_unwitnessed

    logs = await find_unwitnessed(plane.database, key)
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False) as http:
        return [await _Asking(plane, http, key, log).ask() for log in logs]


@dataclass(frozen=True, slots=True)
class _Asking:
    """One log, shown to one witness."""

    plane: "Plane"
    http: "httpx2.AsyncClient"
    key: "VerifierKey"
    log: "Unwitnessed"

    async def ask(self) -> Outcome:
        """Show the log; a witness that saw another size than is remembered is shown the proof from there."""
        from jobengine.errors import ValidationFailed

        old_size = self.log.cosigned
        for _ in range(3):
            try:
                end = await self._show(old_size)
            except ValidationFailed:
                return self._end(old_size, "contradicted", "the witness saw more entries than there are")
            if isinstance(end, Outcome):
                return end
            old_size = end
        return self._end(old_size, "unreachable", "somebody else shows the log to the witness at the same time")

    async def _show(self, old_size: int) -> Outcome | int:
        """Show the log once; return the size from which the witness wants its proof, if it is another one."""
        import httpx2

        from jobengine.storage.witnesses import make_submission

        shown = await make_submission(self.plane.database, self.log.tenant_id, old_size)
        try:
            answer = await self.http.post("add-checkpoint", content=str(shown.submission).encode())
        except httpx2.HTTPError as error:
            return self._end(shown.size, "unreachable", type(error).__name__)
        if answer.is_success:
            return await self._keep(shown, answer.content[:_MOST_ANSWER_BYTES])
        seen = _size_of(answer)
        if seen is not None and seen != old_size:
            return seen
        contradicted = seen is not None or answer.status_code == _UNPROCESSABLE
        said = f"{answer.status_code} {answer.text[:200].strip()}"
        return self._end(shown.size, "contradicted" if contradicted else "refused", said)

    async def _keep(self, shown: "Shown", said: bytes) -> Outcome:
        from jobengine.audit.checkpoint import NoteError
        from jobengine.audit.witness import read_cosignature
        from jobengine.storage.witnesses import keep_cosignature

        try:
            line, at = read_cosignature(said.decode(), shown.submission.note, self.key)
        except (NoteError, UnicodeDecodeError) as error:
            return self._end(shown.size, "refused", str(error))
        await keep_cosignature(self.plane.database, shown, self.key, line, at)
        return self._end(shown.size, "cosigned")

    def _end(self, size: int, outcome: str, detail: str | None = None) -> Outcome:
        return Outcome(self.log.origin, self.key.name, size, outcome, detail)


def _size_of(answer: "httpx2.Response") -> int | None:
    """Return the size that the witness saw last, where its answer says it."""
    told = answer.headers.get("content-type", "").partition(";")[0] == _SIZE_TYPE
    text = answer.text.strip()
    return int(text) if told and answer.status_code == _CONFLICT and text.isascii() and text.isdigit() else None


def _end(outcomes: Sequence[Outcome]) -> int:
    found = {outcome.outcome for outcome in outcomes}
    for outcome, end in (("contradicted", Exit.ERROR), ("refused", Exit.REFUSED), ("unreachable", Exit.RETRY_LATER)):
        if outcome in found:
            return end
    return Exit.OK
