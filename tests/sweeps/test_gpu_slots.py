"""GPUs of parallel jobs, with devices that exist by name only: a job gets a GPU that is free."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from waiting import wait_for

from brainseg.config import DeviceConfig, TrainConfig
from brainseg.runs.job import JobState, Outcome
from brainseg.sweeps import gpu_slots, run_job
from brainseg.sweeps.gpu_slots import gpu_names, reserve_gpu
from brainseg.sweeps.run_job import LaunchContext, run_hydra_job


@pytest.fixture(autouse=True)
def slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the lock files of this test to itself, and do not wait between two tries."""
    monkeypatch.setattr(gpu_slots, "slot_folder", lambda: tmp_path / "slots")
    monkeypatch.setattr(gpu_slots, "SECONDS_BETWEEN_TRIES", 0.01)
    return tmp_path / "slots"


def never() -> bool:
    return False


def test_an_empty_gpu_is_preferred_and_a_free_one_is_taken_again() -> None:
    with ExitStack() as jobs:
        first, second = ExitStack(), ExitStack()
        assert first.enter_context(reserve_gpu(2, 2, never)) == 0
        assert second.enter_context(reserve_gpu(2, 2, never)) == 1
        assert jobs.enter_context(reserve_gpu(2, 2, never)) == 0
        second.close()
        assert jobs.enter_context(reserve_gpu(2, 2, never)) == 1, "GPU 0 has two jobs"
        first.close()


def test_a_stopped_sweep_ends_the_wait() -> None:
    answers = iter([False, False, True])
    with reserve_gpu(1, 1, never), reserve_gpu(1, 1, lambda: next(answers)) as gpu:
        assert gpu is None
    with reserve_gpu(1, 1, never) as gpu:
        assert gpu == 0


def test_the_gpu_of_a_killed_process_is_free(slots: Path) -> None:
    code = f"""
import time
from pathlib import Path
from brainseg.sweeps import gpu_slots
gpu_slots.slot_folder = lambda: Path({str(slots)!r})
with gpu_slots.reserve_gpu(1, 1, lambda: False):
    print("has it", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "has it\n"
    tries = iter([False, True])
    with reserve_gpu(1, 1, lambda: next(tries)) as gpu:
        assert gpu is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with reserve_gpu(1, 1, never) as gpu:
        assert gpu == 0


def test_sweeps_that_see_different_gpus_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, slots: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with reserve_gpu(1, 1, never) as first:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        with reserve_gpu(1, 1, never) as second:
            assert (first, second) == (0, 0), "each counts those that it sees"
    assert {path.name for path in slots.iterdir()} == {"gpu-1-0.lock", "gpu-0-0.lock"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f3a,-1")
    assert gpu_names(2) == ["0", "1"], "numbers that mean nothing are not trusted"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,MIG-GPU-8f3a/1/0")
    assert gpu_names(2) == ["2", "MIG-GPU-8f3a-1-0"]


class Machine:
    """Two GPUs, and jobs that compute until they are told to end."""

    def __init__(self, folder: Path) -> None:
        self.launch = LaunchContext("joblib", str(folder), "s", "start", (), True, 1, gpus=2)
        self.gpus: dict[int, int | None] = {}
        self.threads: dict[int, threading.Thread] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.ends = {number: threading.Event() for number in range(6)}
        self.number = threading.local()

    def call(self, name: str, config: TrainConfig, target: str, job: dict, **_: Any) -> dict:
        self.gpus[job["number"]] = job["gpu"]
        assert self.ends[job["number"]].wait(60)
        return {"state": "finished", "folder": "", "reason": ""}

    def start(self, number: int, device: str = "cuda") -> None:
        def work() -> None:
            self.number.value = number
            composed = OmegaConf.structured(TrainConfig(device=DeviceConfig(device)))
            self.outcomes[number] = run_hydra_job(self.launch, "m:run", composed)

        self.threads[number] = threading.Thread(target=work)
        self.threads[number].start()

    def end(self, number: int) -> None:
        self.ends[number].set()
        self.threads[number].join(60)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    fake = Machine(tmp_path / "hydra")
    context = lambda: SimpleNamespace(  # noqa: E731
        job=SimpleNamespace(num=fake.number.value), overrides=SimpleNamespace(task=[])
    )
    monkeypatch.setattr(run_job, "call_in_subprocess", fake.call)
    monkeypatch.setattr(run_job, "HydraConfig", SimpleNamespace(get=context))
    # Only the main thread may set handlers. A launcher's worker is one.
    monkeypatch.setattr(run_job.signal, "signal", lambda *_: None)
    yield fake
    for number, thread in fake.threads.items():
        fake.ends[number].set()
        thread.join(60)


def test_short_jobs_follow_each_other_beside_a_long_one(machine: Machine) -> None:
    """Job 2 would share GPU 0 with the long job 0 if the jobs' numbers decided."""
    machine.start(0)
    wait_for(lambda: 0 in machine.gpus, 60)
    for number in (1, 2, 3):
        machine.start(number, "auto")
        wait_for(lambda number=number: number in machine.gpus, 60)
        machine.end(number)
    assert machine.gpus == {0: 0, 1: 1, 2: 1, 3: 1}


def test_a_job_waits_for_a_gpu_unless_it_names_its_device(machine: Machine) -> None:
    for number in (0, 1):
        machine.start(number)
        wait_for(lambda number=number: number in machine.gpus, 60)
    machine.start(2)
    machine.start(3, "cpu")
    machine.start(4, "cuda:1")
    wait_for(lambda: machine.gpus.keys() >= {3, 4}, 60)
    assert (machine.gpus[3], machine.gpus[4], 2 in machine.gpus) == (None, None, False)
    machine.end(1)
    wait_for(lambda: 2 in machine.gpus, 60)
    assert machine.gpus[2] == 1
    machine.start(5)
    machine.launch.job_status.stop()
    machine.threads[5].join(60)
    assert machine.outcomes[5].state == JobState.STOPPED and 5 not in machine.gpus
