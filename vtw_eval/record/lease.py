"""Who works in a folder, known without locks of the file system: a marker that is refreshed, names of owners."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE = 60.0
"""Seconds without a sign of life after which the holder on another machine is taken for dead."""


class HeldError(RuntimeError):
    """Another process holds the marker; the message names it."""


@contextmanager
def leased(marker: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold a marker file until the end of the block; its file system needs nothing but exclusive creation.

    The marker of a process of this machine that has ended is taken over at once, that of another machine when it has
    not been refreshed for :data:`LEASE` seconds. A process may hold a marker twice.

    Parameters
    ----------
    marker
        The file; its folder must exist.
    note
        Told when this will take a while.

    Raises
    ------
    HeldError
        If another process holds it.
    OSError
        If the file cannot be made.
    """
    lease = SoftFileLease(marker, lease_duration=LEASE)
    if not _acquired(lease, note):
        yield
        return
    try:
        yield
    finally:
        lease.release()


def _acquired(lease: SoftFileLease, note: Callable[[str], None]) -> bool:
    """Take a marker; False if this process has it already."""
    try:
        lease.acquire(timeout=1)  # more than an instant: the marker of a dead process is removed first
        return True
    except Timeout:
        owner = lease.owner
    if lease.is_lock_held_by_us:
        return False
    if owner is not None and owner.hostname == socket.gethostname():
        raise HeldError(f"process {owner.pid} on {owner.hostname}")
    unknown = f"another process (remove {lease.lock_file} if there is none)"
    who = unknown if owner is None else f"process {owner.pid} on {owner.hostname}"
    note(f"{who} held the folder; waiting {LEASE:.0f} s for a sign of life of it")
    try:
        lease.acquire(timeout=LEASE + 5)
    except Timeout:
        raise HeldError(who) from None
    return True


def owner_name() -> str:
    """Return a name of this process for files that only it may touch."""
    return f"{os.getpid()}-{socket.gethostname()}"


def has_ended(name: str) -> bool:
    """Whether the process of a name by :func:`owner_name` was on this machine and has ended; False if unknown."""
    pid, _, host = name.partition("-")
    if not pid.isdigit() or host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # somebody else's
    return False
