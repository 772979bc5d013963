"""Members that requests of several subjects share."""

from typing import Annotated

import msgspec

from jobengine.ids import JOB_TYPE

PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\Z"

JobType = Annotated[str, msgspec.Meta(pattern=JOB_TYPE)]
Printable = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=PRINTABLE)]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty body."""
