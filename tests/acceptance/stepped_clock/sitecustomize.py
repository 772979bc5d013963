"""A process whose wall clock is off by TEST_CLOCK_STEP seconds: Python imports this before anything else."""

import datetime as dt
import os
import time
from typing import Self

STEP = float(os.environ["TEST_CLOCK_STEP"])
_time, _time_ns, _datetime = time.time, time.time_ns, dt.datetime  # noqa: TID251 - what is replaced


class SteppedDatetime(_datetime):
    """What `from datetime import datetime` gives in this process."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        """Return the wrong time."""
        return super().now(tz) + dt.timedelta(seconds=STEP)


def stepped() -> float:
    """Return the wrong time in seconds."""
    return _time() + STEP


def stepped_ns() -> int:
    """Return the wrong time in nanoseconds."""
    return _time_ns() + int(STEP) * 10**9


time.time, time.time_ns, dt.datetime = stepped, stepped_ns, SteppedDatetime  # noqa: TID251 - what is replaced
