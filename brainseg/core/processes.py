"""State and memory of the processes of this machine."""

import sys

import psutil


def is_alive(pid: int) -> bool:
    """Return True if a process of this host is running. A zombie counts as ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    # The process exists but belongs to another user.
    except psutil.AccessDenied:
        return True


def peak_resident_memory() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    try:
        import resource
    # Windows has no such module. Only there psutil knows the peak.
    except ModuleNotFoundError:
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kilobytes, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
