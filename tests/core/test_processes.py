"""Processes and their memory, with and without what Windows lacks."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from brainseg.core.processes import is_alive, peak_resident_memory


def test_a_process_is_alive_until_it_ends() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(process.pid) and is_alive(os.getpid())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid), "a zombie"
    process.wait()
    assert not is_alive(process.pid)


def test_a_process_of_another_user_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> str:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "status", refuse)
    assert is_alive(os.getpid())


def test_the_peak_counts_bytes_and_stays() -> None:
    block = np.ones(100 << 20, np.uint8)
    peak = peak_resident_memory()
    assert len(block) < peak < psutil.virtual_memory().total
    del block
    assert peak_resident_memory() >= peak


def test_windows_counts_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=12345))
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", lambda: memory)
    assert peak_resident_memory() == 12345
