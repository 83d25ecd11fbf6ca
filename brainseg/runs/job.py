"""A job: what it knows of its sweep, and how it ended."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Job:
    """What a run knows of the command that started it."""

    overrides: tuple[str, ...] = ()
    sweep: str | None = None  # shared by the jobs of one multirun
    number: int | None = None
    swept: tuple[str, ...] = ()  # the settings in which its jobs differ
    choosing: bool = False  # the sweep chooses between settings: no test metrics
    start: str | None = (
        None  # unique to one start of the sweep: a job launched again within it finds its own folder
    )
    threads: int | None = None  # a parallel launcher's share of the cores
    gpu: int | None = None  # the GPU that it deals


class JobState(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    SKIPPED = "skipped"  # the run finished before, is in use, or lacks its device
    FAILED = "failed"
    STOPPED = "stopped"  # by a signal, also before it began
    REFUSED = "refused"  # a single run that the request did not allow for


@dataclass(frozen=True)
class Outcome:
    """State of an ended job, its run folder, and the reason in one line."""

    state: JobState
    folder: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        """Take the state also as text, as it is stored. Raises ValueError for a state that there is not."""
        object.__setattr__(self, "state", JobState(self.state))
