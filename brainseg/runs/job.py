"""Jobs: the command that started a run, and the state in which the run ended."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Job:
    """The command that started a run, and the run's place in a sweep."""

    overrides: tuple[str, ...] = ()
    # The sweep's id, shared by all jobs of one multirun.
    sweep: str | None = None
    number: int | None = None
    # The settings that differ between the jobs of the sweep.
    swept: tuple[str, ...] = ()
    # True if the sweep chooses between settings. Its jobs then compute no test metrics.
    choosing: bool = False
    # Unique to one start of the sweep: a job that is launched again within this start finds its
    # own folder.
    start: str | None = None
    # CPU threads that a parallel launcher assigns to the job.
    threads: int | None = None
    # GPU that a parallel launcher assigns to the job.
    gpu: int | None = None


def tests_patients(test: str, choosing: bool) -> bool:
    """Return True if a job scores its test patients, by the setting `test`.

    A job of a sweep that chooses between settings (`choosing`) must not see them, because the
    choice would then depend on their scores.
    """
    return test == "yes" or (test == "auto" and not choosing)


class JobState(StrEnum):
    """State of a job at the end of a command."""

    FINISHED = "finished"
    # The run finished before, is in use, or lacks its device.
    SKIPPED = "skipped"
    FAILED = "failed"
    # A signal stopped the job, possibly before its first step.
    STOPPED = "stopped"
    # The job waits or runs in the queue of a cluster.
    QUEUED = "queued"


@dataclass(frozen=True)
class Outcome:
    """State of a job, its run folder, and the reason in one line."""

    state: JobState
    folder: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        """Convert a state that is given as text. Raises ValueError for an unknown state."""
        object.__setattr__(self, "state", JobState(self.state))
