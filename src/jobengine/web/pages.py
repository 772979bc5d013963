"""Pages of lists: an opaque token that only continues the list, tenant and filters it was made for."""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

from litestar.params import Parameter

from jobengine.errors import ValidationFailed
from jobengine.ids import JOB_TYPE

MAC_BYTES = 16
DEFAULT_SIZE = 50

PageSize = Annotated[int, Parameter(ge=1, le=500, description="How many items at the most.")]
JobTypeFilter = Annotated[str | None, Parameter(pattern=JOB_TYPE, description="Only of this job type.")]
PageToken = Annotated[str | None, Parameter(description="`next_page_token` of the page before.")]


@dataclass(frozen=True, slots=True)
class Pager:
    """Makes and reads the page tokens of one list; *binding* is all that must stay the same from page to page."""

    key: bytes
    binding: str

    def token(self, cursor: str) -> str:
        """Return the token that continues after *cursor*."""
        return base64.urlsafe_b64encode(self._mac(cursor.encode()) + cursor.encode()).decode().rstrip("=")

    def cursor(self, token: str | None) -> str | None:
        """Return where *token* continues, None for the first page; raises `page_token_invalid` for a foreign one.

        >>> pager = Pager(b"k" * 32, "quotas of acme")
        >>> pager.cursor(pager.token("0198")), pager.cursor(None)
        ('0198', None)
        """
        if token is None:
            return None
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _invalid() from None
        mac, cursor = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(cursor)):
            raise _invalid()
        return cursor.decode()

    def page(self, items: Sequence[Any], size: int, cursors: Sequence[str]) -> Mapping[str, Any]:
        """Return a page of *items*, of which one more than *size* was fetched to know whether there is another."""
        more = self.token(cursors[size - 1]) if len(items) > size else None
        return {"items": list(items[:size]), "next_page_token": more}

    def _mac(self, cursor: bytes) -> bytes:
        bound = sha256(self.binding.encode()).digest()
        return hmac.digest(self.key, bound + cursor, "sha256")[:MAC_BYTES]


def _invalid() -> ValidationFailed:
    return ValidationFailed("page_token", "does not continue this list", code="page_token_invalid")
