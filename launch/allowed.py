"""What the system must allow before anything is started, so that it is missed with a message and not halfway."""

from __future__ import annotations

import resource
import threading

from launch.rundir import RunDirError

FEWEST_OPEN_FILES, MANY_OPEN_FILES = 128, 4096
FEWEST_THREADS = 40
"""Processes and their threads, which the system counts together; numpy makes more where there are many CPUs."""


def raise_open_files() -> None:
    """Descriptors for as many programs as the system allows. Raises `RunDirError` where it allows too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MANY_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_OPEN_FILES)
    if soft < most and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < FEWEST_OPEN_FILES:
        raise RunDirError(
            f"{most} open files are allowed here, at least {FEWEST_OPEN_FILES} are needed; raise it (`ulimit -n`)"
        )


def check_threads() -> None:
    """Try to have as many threads as the pipeline takes. Raises `RunDirError` where that is not allowed.

    Tried, as the limits (of a user, of a container) count what others have started, too. It has to be known
    before: where a thread cannot be started, libzmq ends its process without a word of ours.
    """
    over = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(FEWEST_THREADS):
            thread = threading.Thread(target=over.wait, name="tried", daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        raise RunDirError(
            f"no more than {len(threads)} processes and threads can be started here, at least {FEWEST_THREADS} are "
            "needed; raise it (`ulimit -u`; in a container its limit of pids)"
        ) from error
    finally:
        over.set()
        for thread in threads:
            thread.join()
