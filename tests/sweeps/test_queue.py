"""Jobs in a queue, without a cluster: small scripts answer in place of sbatch and squeue. `test_slurm.py` has a real one."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir

from brainseg.cli.train_request import plan_jobs
from brainseg.config import TrainConfig
from brainseg.config.compose import CONFIGS
from brainseg.config.launchers import SubmititSlurm
from brainseg.core.errors import RequestError
from brainseg.runs import sweep_record
from brainseg.runs.dry_run import JobCheck
from brainseg.runs.job import JobState, Outcome
from brainseg.sweeps import queue
from brainseg.sweeps.isolated_process import SubprocessFailed, call_in_subprocess
from brainseg.sweeps.queue_signals import QueueSignals, requeue_unless_cancelled

pytest.importorskip("submitit")
JOBS = [["seed=0", "epochs=2"], ["seed=1", "epochs=2"]]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of the search path. Files in it take the place of SLURM's programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    write_program(folder / "srun", "")
    return folder


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def settings(**changes: object) -> dict:
    return vars(SubmititSlurm(**changes))


def test_every_setting_reaches_sbatch(programs: Path, tmp_path: Path) -> None:
    write_program(programs / "sbatch", "echo Submitted batch job 7")
    options = {
        "mem_per_gpu": "32GB",
        "nodelist": "node[1-2]",
        "reservation": "course",
        "dependency": "afterok:12",
        "comment": "for the paper",
        "partition": "gpu",
        "gres": "gpu:a100:1",
    }
    jobs = queue.submit(print, [(0,), (1,)], settings(**options), str(tmp_path))
    assert [job.job_id for job in jobs] == ["7_0", "7_1"]
    (script,) = tmp_path.glob(".submitit/*/7_submission.sh")
    lines = script.read_text().splitlines()
    for line in (
        "--mem-per-gpu=32GB",
        "--nodelist='node[1-2]'",
        "--reservation=course",
        "--dependency=afterok:12",
        "--comment='for the paper'",
        "--partition=gpu",
        "--gres=gpu:a100:1",
        "--time=1440",
        "--cpus-per-task=8",
        "--signal=USR2@120",
        "--job-name=brainseg",
    ):
        assert f"#SBATCH {line}" in lines


def test_a_refusal_of_the_queue_is_an_error_of_the_request(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(programs / "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(RequestError, match="sbatch refused the jobs"):
        queue.submit(print, [(0,)], settings(partition="none"), str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="this machine has no sbatch"):
        queue.submit(print, [(0,)], settings(), str(tmp_path))


def test_jobs_that_will_not_run_again_are_not_in_the_queue(programs: Path) -> None:
    write_program(programs / "squeue", "printf '7_0 RUNNING\\n7_1 CANCELLED\\n8 PENDING\\n'")
    assert queue.queue_states() == {"7_0": "RUNNING", "8": "PENDING"}
    write_program(programs / "squeue", "echo 'slurm_load_jobs error' >&2; exit 1")
    with pytest.raises(OSError, match="squeue does not answer: slurm_load_jobs error"):
        queue.queue_states()


def test_the_outcome_of_a_job_depends_on_its_file_and_on_the_queue(tmp_path: Path) -> None:
    job = queue.Submission("7_0", str(tmp_path), "start", 3)
    assert job.outcome_in({"7_0": "PENDING"}) == Outcome(JobState.QUEUED, "", "job 7_0: pending")
    assert "left the queue before it began" in job.outcome_in({}).reason
    job.status.write(3, pid=1, host="node")
    assert job.outcome_in({"7_0": "RUNNING"}).state == JobState.QUEUED
    assert "worker process was lost" in job.outcome_in({}).reason
    # A job that was stopped may be requeued, and is not at its end while it is in the queue.
    job.status.write_outcome(3, Outcome(JobState.STOPPED, "runs/a", "stopped by SIGUSR2"))
    assert not job.is_final and job.outcome_in({"7_0": "PENDING"}).state == JobState.QUEUED
    assert job.outcome_in({}).state == JobState.STOPPED
    job.status.write_outcome(3, Outcome(JobState.FINISHED, "runs/a"))
    assert job.is_final and job.outcome_in({"7_0": "COMPLETING"}).state == JobState.FINISHED


def test_a_queue_that_does_not_answer_leaves_the_jobs_in_it(
    programs: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(queue, "QUEUE_SECONDS", 0.02)
    write_program(programs / "squeue", f"echo >> {tmp_path}/asked; exit 1")
    ended, running = (queue.Submission(f"7_{n}", str(tmp_path), "start", n) for n in (0, 1))
    ended.status.write_outcome(0, Outcome(JobState.FINISHED, "runs/a"))
    assert queue.states_of([ended]) == {} and not (tmp_path / "asked").exists()
    assert queue.states_of([ended, running]) is None
    assert (tmp_path / "asked").read_text().count("\n") == 3
    assert ended.outcome_in(None).state == JobState.FINISHED
    assert running.outcome_in(None) == Outcome(
        JobState.QUEUED, reason="job 7_1: squeue does not answer"
    )


def test_waiting_ends_when_no_job_is_left(programs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(queue, "FILE_SECONDS", 0.01)
    monkeypatch.setattr(queue, "QUEUE_SECONDS", 0.02)
    ended, cancelled = (queue.Submission(f"7_{n}", str(tmp_path), "start", n) for n in (0, 1))
    ended.status.write_outcome(0, Outcome(JobState.FINISHED, "runs/a"))
    # The job is in the queue for the first three answers. The second time squeue fails.
    write_program(
        programs / "squeue",
        f"echo >> {tmp_path}/asked; n=$(wc -l < {tmp_path}/asked); "
        "[ $n = 2 ] && exit 1; [ $n -lt 4 ] && echo '7_1 RUNNING'; exit 0",
    )
    queue.wait_for_queue([ended, cancelled])
    assert (tmp_path / "asked").read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("number", "state", "is_requeued"),
    [
        (signal.SIGUSR2, "CANCELLED", True),
        (signal.SIGTERM, "RUNNING", True),
        (signal.SIGTERM, "CANCELLED", False),
        (signal.SIGTERM, "TIMEOUT", False),
    ],
)
def test_a_job_is_requeued_unless_it_was_cancelled(
    programs: Path, monkeypatch: pytest.MonkeyPatch, number: int, state: str, is_requeued: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    write_program(programs / "squeue", f"echo {state}")
    received: list[int] = []
    previous = signal.signal(signal.SIGUSR2, lambda number, _: received.append(number))
    try:
        requeue_unless_cancelled(number)
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert bool(received) == is_requeued


SIGNALS_ITSELF = """
import os, signal, time

def run(config):
    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    os.kill(os.getppid(), signal.SIGTERM)
    while True:
        time.sleep(0.1)
"""


def test_a_process_in_a_queue_takes_the_first_signal_from_its_parent_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM sends the same signals to all processes of a job."""
    (tmp_path / "signals_itself.py").write_text(SIGNALS_ITSELF)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    with QueueSignals() as signals:
        with pytest.raises(SubprocessFailed, match="ended with exit code 130"):
            call_in_subprocess("signals_itself:run", TrainConfig(), signals=signals)
        assert signals.number == signal.SIGTERM


def test_the_record_finds_a_submitted_job_again(tmp_path: Path) -> None:
    place = queue.Submission("7_1", str(tmp_path), "start", 1).facts()
    row = {"overrides": JOBS[1], "state": "queued", "folder": "", "reason": "job 7_1"}
    sweep_record.write_record(tmp_path, "seed-1", [row | {"submission": place}])
    with_launcher = [[*job, "wait=false", "hydra/launcher=submitit_slurm"] for job in JOBS]
    assert sweep_record.recorded_submissions(tmp_path, "seed-1", with_launcher) == {1: place}
    with pytest.raises(RequestError, match="seed-1: none of its jobs has a run yet"):
        sweep_record.sweep_run_folders("seed-1", tmp_path)
    sweep_record.write_record(tmp_path, "seed-1", [row | {"state": "skipped"}])
    assert sweep_record.recorded_submissions(tmp_path, "seed-1", JOBS) == {}
    assert len(json.loads((tmp_path / "sweeps/seed-1.json").read_text())["jobs"]) == 1


def plan(*overrides: str) -> list[JobCheck]:
    def check_request(config: TrainConfig) -> JobCheck:
        return JobCheck(10, "6/1/1", "the CPU of this machine", "no CUDA device here")

    arguments = SimpleNamespace(multirun=True, overrides=list(overrides))
    with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
        return plan_jobs(list(overrides), arguments, check_request).facts


def test_the_devices_of_the_login_node_are_not_those_of_the_jobs() -> None:
    cluster = ("seed=0,1", "device=cuda", "hydra/launcher=submitit_slurm")
    facts = plan(*cluster, "device.on_missing=skip", "wait=false")
    assert [(fact.device, fact.missing) for fact in facts] == [("cuda, on its node", "")] * 2
    with pytest.raises(
        RequestError, match="wait=false: only the jobs in the queue of a cluster go on"
    ):
        plan("seed=0,1", "wait=false")
    with pytest.raises(RequestError, match="dry_run=measure: would measure this machine"):
        plan(*cluster, "dry_run=measure")
