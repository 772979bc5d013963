"""Becomes a handler's command that the kernel ends together with the worker, even one that is killed.

Run by its path in an isolated interpreter: it may import the standard library alone.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Let the kernel kill this process when *parent* ends, where it can (Linux); end at once if it has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Run ``PARENT COMMAND ARGUMENT…`` in place of this process."""
    die_with(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - a command without a shell is the point
    except OSError as error:
        sys.exit(f"the command cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()
