"""Jobs submitted with submitit: to the queue of a SLURM cluster, or at once on this machine.

A job of a cluster outlives the command that submitted it. The record of the sweep therefore holds
the place of each job in the queue, and the next start of the same command finds the job there.
"""

import getpass
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.config.launchers import SHARED_SETTINGS, SLURM
from brainseg.core.errors import RequestError, check
from brainseg.runs.job import JobState, Outcome
from brainseg.sweeps.job_status import LOST, JobStatusStore

if TYPE_CHECKING:
    from submitit import Job as SubmittedJob

# States of SLURM in which a job will not run any more.
ENDED_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
# The status files are read often. The queue, which serves many users, is asked less often.
FILE_SECONDS, QUEUE_SECONDS = 1, 10


@dataclass(frozen=True)
class Submission:
    """The place of a submitted job: its ID in the queue, and where its status file is."""

    id: str
    folder: str
    start: str
    number: int

    @property
    def status(self) -> JobStatusStore:
        """Return the status files of the start that submitted the job."""
        return JobStatusStore(Path(self.folder) / "jobs", self.start)

    @property
    def outcome(self) -> Outcome | None:
        """Return the outcome of the job, or None if it has not ended."""
        return self.status.outcome(self.number)

    @property
    def is_final(self) -> bool:
        """Return True if the job has ended and the queue does not start it again."""
        outcome = self.outcome
        return outcome is not None and outcome.state != JobState.STOPPED

    def outcome_in(self, states: dict[str, str] | None) -> Outcome:
        """Return the outcome of the job, where `states` are those of the queue.

        None means that the queue does not answer. A job that has not ended is then taken to be in
        the queue, where the same command looks for it again.
        """
        if not self.is_final and (states is None or self.id in states):
            state = "squeue does not answer" if states is None else states[self.id].lower()
            return Outcome(JobState.QUEUED, reason=f"job {self.id}: {state}")
        if outcome := self.outcome:
            return outcome
        if self.status.read(self.number):
            return LOST
        reason = "left the queue before it began; run the same command to submit it again"
        return Outcome(JobState.STOPPED, reason=reason)

    def facts(self) -> dict[str, Any]:
        """Return the fields, as the record of the sweep stores them."""
        return asdict(self)


def submit(
    function: Callable[..., None], arguments: Sequence[tuple], settings: dict[str, Any], folder: str
) -> "list[SubmittedJob]":
    """Submit one job for each tuple of arguments, and return submitit's jobs in this order.

    Raises RequestError if there is no queue on this machine, or if it refuses the jobs.

    Args:
        function: Called with the arguments, in a process of the job. It is pickled.
        arguments: The arguments of each job.
        settings: The settings of the launcher.
        folder: Folder for submitit's own files.
    """
    import submitit

    settings = dict(settings)
    cluster = "slurm" if settings.pop("_target_") == SLURM else "local"
    check(
        cluster == "local" or shutil.which("sbatch") is not None,
        "hydra/launcher",
        "submitit_slurm",
        "this machine has no sbatch",
        "start the command on a machine that submits jobs, such as the login node",
    )
    timeouts = settings.pop("max_num_timeout", 0)
    reservation = settings.pop("reservation", None)
    parameters = {
        name if name in SHARED_SETTINGS else f"slurm_{name}": value
        for name, value in settings.items()
    }
    if reservation is not None:
        parameters["slurm_additional_parameters"] = {"reservation": reservation}
    # Submitit replaces %j by the ID of the job.
    executor = submitit.AutoExecutor(
        f"{folder}/.submitit/%j", cluster, slurm_max_num_timeout=timeouts
    )
    executor.update_parameters(**parameters)
    try:
        return list(executor.map_array(function, *zip(*arguments, strict=True)))
    except submitit.core.utils.FailedJobError as error:
        # Submitit has passed on what sbatch printed.
        raise RequestError(
            "hydra/launcher=submitit_slurm: sbatch refused the jobs, for the reason above; "
            "correct hydra.launcher.NAME, or ask those who run the cluster"
        ) from error


def queue_states() -> dict[str, str]:
    """Return the state of this user's jobs that wait or run, by the ID of the job.

    Raises OSError if the queue does not answer.
    """
    command = ["squeue", f"--user={getpass.getuser()}", "--array", "--noheader", "--states=all"]
    answer = subprocess.run([*command, "--format=%i %T"], capture_output=True, text=True)
    if answer.returncode:
        raise OSError(f"squeue does not answer: {answer.stderr.strip()}")
    states = dict(line.split() for line in answer.stdout.splitlines())
    return {job: state for job, state in states.items() if state not in ENDED_STATES}


def states_of(submissions: Collection[Submission]) -> dict[str, str] | None:
    """Return the states of the queue, or None if it does not answer.

    The queue is not asked if all jobs have ended, and asked three times before it is given up.
    """
    if all(submission.is_final for submission in submissions):
        return {}
    for attempt in range(3):
        time.sleep(QUEUE_SECONDS / 2 if attempt else 0)
        if (states := _states_or_none()) is not None:
            return states
    return None


def wait_for_queue(submissions: Iterable[Submission]) -> None:
    """Wait until every job has ended or has left the queue. A requeued job stays in the queue."""
    pending, last_query = list(submissions), 0.0
    while pending := [submission for submission in pending if not submission.is_final]:
        if time.monotonic() - last_query > QUEUE_SECONDS:
            states, last_query = _states_or_none(), time.monotonic()
            if states is not None and not any(job.id in states for job in pending):
                # The last status files may reach a network disk a little later.
                time.sleep(2 * FILE_SECONDS)
                return
        time.sleep(FILE_SECONDS)


def wait_until_absent(jobs: Iterable[str]) -> None:
    """Wait until none of these jobs, named by their IDs, is in the queue."""
    names = set(jobs)
    # A job can be missing for a moment while it is submitted or requeued.
    absences = 0
    while absences < 2:
        time.sleep(QUEUE_SECONDS / 2)
        states = _states_or_none()
        if states is not None:
            absences = 0 if names & states.keys() else absences + 1


def _states_or_none() -> dict[str, str] | None:
    """Return the states of the queue, or None while the queue does not answer."""
    try:
        return queue_states()
    except OSError:
        return None
