"""Become another user and turn into a PostgreSQL program: ``KIND UID GID stay|detach FOLDER PROGRAM [ARGUMENT…]``.

Started by its path in a bare interpreter and importing nothing of this project: a user namespace can be entered only by
a process of one thread, and PostgreSQL refuses to run as root.
"""

import os
import signal
import struct
import sys
from pathlib import Path

CLONE_NEWUSER = 0x1000_0000
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION = 0x2008_0522


def become(kind: str, uid: int, gid: int) -> None:
    """Take the identity for good; OSError where the kernel or a container's profile forbids it."""
    if kind == "namespace":
        enter_namespace(uid, gid)
    elif kind == "account":
        enter_account(uid, gid)
    elif kind == "reaching":
        with_reach(uid, gid)


def enter_namespace(uid: int, gid: int) -> None:
    """Enter a user namespace in which the caller is *uid* and *gid* (user_namespaces(7)); outside nothing changes.

    What is run next keeps access to the caller's own files and holds no capability at all.
    """
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    call("unshare", CLONE_NEWUSER)
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{uid} {outer_uid} 1")
    (own / "gid_map").write_text(f"{gid} {outer_gid} 1")


def enter_account(uid: int, gid: int) -> None:
    """Give up every right of root."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def with_reach(uid: int, gid: int) -> None:
    """Give up every right of root but one: to pass where folders are closed (capabilities(7), ambient set)."""
    right = 1 << CAP_DAC_OVERRIDE
    call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    enter_account(uid, gid)
    # Effective, permitted, inheritable; the second three are the rights above 31.
    call("capset", struct.pack("Ii", CAPABILITY_VERSION, 0), struct.pack("6I", right, right, right, 0, 0, 0))
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def call(name: str, *arguments: int | bytes) -> None:
    """Call a function of the C library that Python does not offer; OSError if it fails."""
    import ctypes  # noqa: PLC0415  who runs as the caller need not pay for it

    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    if getattr(libc, name)(*words) != 0:
        raise OSError(ctypes.get_errno(), name)


def detach() -> None:
    """Let a child go on, which nobody has to wait for; its output goes where its errors go."""
    if os.fork():
        os._exit(0)
    os.dup2(2, 1)


def main(kind: str, uid: str, gid: str, way: str, folder: str, *command: str) -> None:
    """Run the steps in order; what goes wrong is said on standard error, and the status is not zero."""
    os.umask(0o077)
    # Python would note an interrupt and forget it in execv; whoever stops this process must be heard.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        become(kind, int(uid), int(gid))
        os.chdir(folder)
        if way == "detach":
            detach()
        os.execv(command[0], command)  # noqa: S606  there is nothing for a shell to do
    except OSError as error:
        sys.exit(f"cannot run {command[0]} in {folder} as {uid}:{gid} ({kind}): {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
