"""State of the processes of this machine."""

import os
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Return True if a process of this host is running. A zombie counts as ended."""
    if Path("/proc/self/stat").exists():
        try:
            # The name of the program is in parentheses and may contain spaces, so the state is
            # the first field after the last parenthesis.
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # The process exists but belongs to another user.
    except PermissionError:
        return True
    return True
