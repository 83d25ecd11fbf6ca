"""Reservation of GPUs by jobs that run in parallel on this machine.

Each GPU has one or more slots. A slot is a lock file, which the operating system unlocks when the
process that has locked it ends, however it ends. The lock files lie in a folder of the user, so
that the sweeps of all projects share them.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

SECONDS_BETWEEN_TRIES = 0.5


@contextmanager
def reserve_gpu(
    gpus: int, jobs_per_gpu: int, is_stopped: Callable[[], bool]
) -> Iterator[int | None]:
    """Wait for a free slot, and yield the number of its GPU. The slot is free after the block.

    A GPU without any job is preferred. Yields None if `is_stopped` returns True in the meantime.
    """
    folder = slot_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    slots = [
        (number, FileLock(folder / f"gpu-{name}-{slot}.lock"))
        for slot in range(jobs_per_gpu)
        for number, name in enumerate(gpu_names(gpus))
    ]
    while not is_stopped():
        for number, lock in slots:
            with suppress(Timeout):
                lock.acquire(timeout=0)
            if lock.is_locked:
                try:
                    yield number
                finally:
                    lock.release()
                return
        time.sleep(SECONDS_BETWEEN_TRIES)
    yield None


def slot_folder() -> Path:
    """Return the folder of this user's lock files."""
    # Windows has no user numbers. Its temporary folder belongs to the user.
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"brainseg-gpus-{user}"


def gpu_names(count: int) -> list[str]:
    """Return the names of the visible GPUs, which are the same for all sweeps of the machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace("/", "-").split(",")
    return visible if len(visible) == count and all(visible) else [str(n) for n in range(count)]
