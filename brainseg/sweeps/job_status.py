"""Status files of the jobs in one start of a sweep: one small JSON file per job.

The record of a sweep over all its starts is in `runs/sweep_record.py`.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainseg.core.files import write_json
from brainseg.runs.job import JobState, Outcome

NOT_STARTED = Outcome(JobState.STOPPED, reason="not started")
LOST = Outcome(
    JobState.FAILED, reason="its worker process was lost; run the same command to resume it"
)


class JobStatusStore:
    """Status of every job in one start of a sweep, in one file per job.

    The process that runs a job writes its file, whatever process the launcher has chosen. Files of
    an earlier start of the same sweep are ignored.
    """

    def __init__(self, folder: Path, start: str) -> None:
        self.folder, self.start = folder, start

    def write(self, number: int, **facts: Any) -> None:
        """Write the facts about a job, in place of earlier facts."""
        write_json(self.folder / f"job-{number}.json", {"start": self.start, **facts})

    def read(self, number: int) -> dict[str, Any]:
        """Return the facts about a job, or an empty dictionary if this start has not begun it."""
        path = self.folder / f"job-{number}.json"
        facts = json.loads(path.read_text()) if path.is_file() else {}
        return facts if facts.get("start") == self.start else {}

    def write_start(self, number: int, **process: Any) -> None:
        """Write the process that runs a job, and the time at which the job started."""
        self.write(number, started=time.time(), **process)

    def write_outcome(self, number: int, outcome: Outcome) -> Outcome:
        """Write the outcome of a job, with the seconds since its start, and return it."""
        started = self.read(number).get("started")
        self.write(
            number,
            state=outcome.state,
            folder=outcome.folder,
            reason=outcome.reason,
            seconds=None if started is None else time.time() - started,
        )
        return outcome

    def estimate_seconds_left(self, shares: Sequence[float], jobs_at_a_time: int) -> float | None:
        """Return the estimated seconds until all jobs have ended, or None if unknown.

        The pace is that of the finished jobs. `shares` has the share of its run that each job had
        left at the start of the sweep. A job that only skips a finished run has 0.
        """
        jobs = [(self.read(number), share) for number, share in enumerate(shares)]
        finished = [
            (facts["seconds"], share)
            for facts, share in jobs
            if facts.get("state") == JobState.FINISHED and facts["seconds"] and share
        ]
        if not finished or not jobs_at_a_time:
            return None
        pace = sum(seconds for seconds, _ in finished) / sum(share for _, share in finished)
        left = [
            max(0.0, share * pace - (time.time() - facts["started"] if facts else 0.0))
            for facts, share in jobs
            if "state" not in facts
        ]
        return sum(left) / max(1, min(jobs_at_a_time, len(left)))

    def outcome(self, number: int) -> Outcome | None:
        """Return the outcome of a job, or None if no process has written an outcome."""
        facts = self.read(number)
        return (
            Outcome(facts["state"], facts["folder"], facts["reason"]) if "state" in facts else None
        )

    def outcomes(self, count: int, otherwise: Outcome) -> list[Outcome]:
        """Return the outcomes of all jobs.

        A job that began but has no outcome gets `LOST`. A job that never began gets `otherwise`.
        """
        return [
            self.outcome(number) or (LOST if self.read(number) else otherwise)
            for number in range(count)
        ]

    def stop(self) -> None:
        """Write the stop file, so that no further job begins."""
        write_json(self.folder / "stop.json", {"start": self.start})

    @property
    def is_stopped(self) -> bool:
        """Return True if this start of the sweep has a stop file."""
        path = self.folder / "stop.json"
        # A stop file of an earlier start must not stop this start.
        return path.is_file() and json.loads(path.read_text())["start"] == self.start
