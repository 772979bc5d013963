"""``jobengine-verify``: is this export what the log signed?"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from jobengine_verify.notes import CannotCheck, Checkpoint, Forged, Key, open_checkpoint, parse_key, signer
from jobengine_verify.verify import Among, Intact, Missing, Named, Tampered, check_export

INTACT, TAMPERED, CANNOT_CHECK = 0, 1, 2
_MAX_SHOWN = 500


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 for an intact export, 1 for a tampered one, 2 when it cannot be checked."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return CANNOT_CHECK if stop.code else INTACT
    try:
        keys = _keys(options.key)
        since = _since(options.since, keys) if options.since else None
        with options.export.open("rb") as file, _tiles(options.export, options.tiles) as tiles:
            outcome = check_export(file, keys[0], since, tiles)
    except (CannotCheck, OSError, ValueError) as error:
        print(_printable(f"CANNOT CHECK: {error}"), file=sys.stderr)
        return CANNOT_CHECK
    print("\n".join(map(_printable, _report(outcome, since))))
    return INTACT if isinstance(outcome, Intact) else TAMPERED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobengine-verify",
        description="Check an audit export offline. Exit code 0: intact, 1: tampered, 2: cannot be checked.",
    )
    parser.add_argument("export", type=Path, metavar="EXPORT", help="the file that GET /audit/export gave")
    parser.add_argument(
        "--key",
        required=True,
        action="append",
        metavar="VKEY|@FILE",
        help="the log's verifier key, got from elsewhere than the export; "
        "given again, a former key, which may have signed the earlier checkpoint alone",
    )
    parser.add_argument("--since", type=Path, metavar="CHECKPOINT", help="an earlier checkpoint, kept by you")
    parser.add_argument(
        "--tiles",
        type=Path,
        metavar="FILE",
        help="the log's leaf hashes, which tell where a tampered export differs; EXPORT.tiles, if there is one",
    )
    return parser


def _keys(texts: Sequence[str]) -> list[Key]:
    keys = [parse_key((Path(text[1:]).read_text("utf-8") if text[:1] == "@" else text).strip()) for text in texts]
    if len({key.name for key in keys}) > 1:
        raise CannotCheck("the keys are of different logs")
    return keys


def _tiles(export: Path, given: Path | None) -> AbstractContextManager[BinaryIO | None]:
    beside = export.with_name(f"{export.name}.tiles")
    file = given or (beside if beside.is_file() else None)
    return file.open("rb") if file else nullcontext()


def _since(path: Path, keys: Sequence[Key]) -> Checkpoint:
    # Bytes, because reading as text would turn other line ends into the one that was signed.
    note = path.read_bytes().decode()
    try:
        return open_checkpoint(note, signer(note, keys))
    except Forged as error:
        raise CannotCheck(f"{path}: {error}") from None


def _report(outcome: Intact | Tampered, since: Checkpoint | None) -> list[str]:
    if isinstance(outcome, Intact):
        return _intact(outcome, since)
    return [f"TAMPERED: {outcome.problem}", f"first bad entry: {_place(outcome.first_bad)}"]


def _intact(outcome: Intact, since: Checkpoint | None) -> list[str]:
    signed = outcome.checkpoint
    lines = [
        f"INTACT: {signed.size} entries, all that the checkpoint says, in the order that was signed",
        f"log: {signed.origin}, tenant: {outcome.tenant_id or '-'}, root: {signed.root.hex()}",
    ]
    if since:
        lines.append(f"continues the earlier checkpoint of {since.size} entries")
    if outcome.withheld:
        lines.append(f"entries withheld: {outcome.withheld}, each of them in its place as its hash alone")
    if outcome.closed:
        lines.append(f"texts withheld or erased: {outcome.closed} (their entries are intact)")
    return lines


def _printable(line: str) -> str:
    """Keep what a tampered file says from steering the terminal it is shown on."""
    return "".join(sign if sign.isprintable() else "?" for sign in line[:_MAX_SHOWN])


def _place(first_bad: Named | Missing | Among | None) -> str:
    match first_bad:
        case Named(index, entry_id):
            return f"index {index}, entry_id {entry_id or 'not readable'}"
        case Missing(index, earliest) if earliest < index:
            return f"index {index} is missing, or one of index {earliest} to {index - 1} was taken out"
        case Missing(index):
            return f"index {index} is missing"
        case Among(first, last):
            return f"one of index {first} to {last}; the file does not tell which"
        case None:
            return "none can be named"
