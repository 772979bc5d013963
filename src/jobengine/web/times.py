"""Times of a request: read strictly, refused with the path of the member that holds them."""

from datetime import datetime

from jobengine.clock import parse_time
from jobengine.errors import ValidationFailed


def read_time(path: str, text: str) -> datetime:
    """Return the time that *text* names; raises ValidationFailed naming *path*."""
    try:
        return parse_time(text)
    except ValueError as error:
        raise ValidationFailed(path, str(error)) from None
