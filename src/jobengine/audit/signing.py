"""The keys under the checkpoints of all logs of one installation: one signs, each verifies what it signed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobengine.audit.checkpoint import (
    Checkpoint,
    UnknownSigner,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    sign,
    verifier_key,
    verify,
)


@dataclass(frozen=True, slots=True)
class LogKeys:
    """Keys by kid, all that ever signed; *current* is the one that signs now."""

    private: Mapping[str, Ed25519PrivateKey] = field(repr=False)
    current: str

    def sign(self, checkpoint: Checkpoint) -> str:
        """Return the signed note of *checkpoint*."""
        return sign(checkpoint, self.private[self.current])

    def verifier_key(self, origin: str, kid: str | None = None) -> VerifierKey:
        """Return the public key of the log called *origin*: the current one, or the one called *kid*."""
        return verifier_key(origin, self.private[kid or self.current])

    def read(self, note: str) -> Checkpoint:
        """Return the checkpoint in *note* if one of the keys signed it under its origin; raises NoteError."""
        origin = parse_checkpoint(parse_note(note).text).origin
        for kid in (self.current, *self.private):
            try:
                return verify(note, self.verifier_key(origin, kid))
            except UnknownSigner:
                continue
        raise UnknownSigner(f"no key of this installation signed this checkpoint of {origin}")
