"""``jobengine audit export`` and ``erase``: the log in a file, whole or in part, and a text of it gone for ever."""

import json
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from cyclopts import Parameter

from jobengine.authority.scopes import Scope
from jobengine.cli.call import TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.show import print_note, show_one

if TYPE_CHECKING:
    from jobengine.cli.api import Api

EXPORT: Final = "/audit/export"

Form: TypeAlias = Literal["ndjson", "csv", "ocsf"]
Platform = Annotated[bool, Parameter(help="the platform's own log; needs a governor, and a reason")]


def export(
    file: Path | None = None,
    /,
    *,
    form: Annotated[Form, Parameter(name="--format")] = "ndjson",
    action: str | None = None,
    since: str | None = None,
    until: str | None = None,
    platform: Platform = False,
    call: TheCall,
) -> None:
    """Write the log as lines of JSON for ``jobengine-verify``, as CSV for people, or as OCSF events for other tools.

    Lines of JSON go on by themselves where the connection broke or the token ended. Beside their FILE lies FILE.tiles:
    with it jobengine-verify names the entry that was changed.

    Args:
        file: where to; standard output when left out or -.
        form: how it is written.
        action: show the entries of this action only, like quota.adjusted; of the others the hashes stay.
        since: show those at this time or later only, like 2026-01-31T00:00:00Z.
        until: show those before this time only.
        platform: the platform's own log.
        call: the global options.
    """
    query = {"format": form, "action": action, "since": since, "until": until, "log": log_of(platform=platform)}
    scope = scope_of(platform=platform)
    with call.api() as api:
        exported = Lines(api, scope, query)
        chunks = exported if form == "ndjson" else pieces(api, scope, query)
        if file is None or file == Path("-"):
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            return
        save(file, chunks)
        if form == "ndjson":
            rest = {"format": "tiles", "first": 0, "size": exported.size, "log": query["log"]}
            save(file.with_name(f"{file.name}.tiles"), pieces(api, scope, rest))
            print_note(f"{file}: {exported.size} entries")


def erase(entry_id: str, /, *, platform: Platform = False, call: TheCall) -> None:
    """Delete reason and ticket of an entry for ever; the entry and its proofs stay. Needs a governor, and a reason.

    Args:
        entry_id: the entry.
        platform: an entry of the platform's own log.
        call: the global options.
    """
    path = f"/audit/entries/{entry_id}/erase"
    with call.api() as api:
        shown = api.send("POST", path, Scope.GOVERN, query={"log": log_of(platform=platform)})
    show_one(call, shown, f"{entry_id}: erased {', '.join(shown.get('erased', [])) or 'nothing: it has no texts'}")


class Lines:
    """The lines of an export, asked for again from the first one that did not arrive; *size* is known after line 1."""

    def __init__(self, api: "Api", scope: Scope, query: Mapping[str, object]) -> None:
        self.size = 0
        self._asked = api, scope, query
        self._place = 0
        self._begun = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield whole lines; raises CommandFailed when nothing more arrives at all."""
        while True:
            arrived = self._place
            try:
                yield from self._attempt()
            except CommandFailed as failed:
                if failed.end != Exit.RETRY_LATER or self._place == arrived:
                    raise
            else:
                return

    def _attempt(self) -> Iterator[bytes]:
        api, scope, query = self._asked
        rest: dict[str, object] = {"first": self._place, "size": self.size} if self._begun else {}
        for line in whole_lines(pieces(api, scope, {**query, **rest})):
            if self._begun:
                self._place += line.count(b",") + 1 if line.startswith(b'{"withheld":') else 1
            else:
                self.size, self._begun = int(json.loads(line)["checkpoint"].split("\n")[1]), True
            yield line


def pieces(api: "Api", scope: Scope, query: Mapping[str, object]) -> Generator[bytes]:
    """Yield what an export answers, as it arrives."""
    with api.stream(EXPORT, scope, **query) as chunks:
        yield from chunks


def whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Yield the lines in *chunks* with their ends; what comes after the last end is no line.

    >>> list(whole_lines([b"on", b"e\ntwo\nth"]))
    [b'one\n', b'two\n']
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def scope_of(*, platform: bool) -> Scope:
    """Return the scope that reading a log needs."""
    return Scope.GOVERN if platform else Scope.AUDIT


def log_of(*, platform: bool) -> str | None:
    """Return the value of the parameter ``log``."""
    return "platform" if platform else None


def save(file: Path, chunks: Iterable[bytes]) -> None:
    """Write *chunks* to *file*, whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as out:
            out.writelines(chunks)
        part.replace(file)
    except OSError as error:
        raise CommandFailed(f"cannot write {file}: {error.strerror}", Exit.ERROR) from None
    finally:
        part.unlink(missing_ok=True)
