"""How each job of one start of a sweep stands: one small file per job."""

import json
from pathlib import Path
from typing import Any

from brainseg.core.files import write_json
from brainseg.runs.job import JobState, Outcome

NOT_STARTED = Outcome(JobState.STOPPED, reason="not started")
LOST = Outcome(JobState.FAILED, reason="its worker was lost; the same command goes on with it")


class JobStatusStore:
    """How each job of one start of a sweep stands: a small file a job, written by whatever process the launcher runs it in."""

    def __init__(self, folder: Path, start: str) -> None:
        self.folder, self.start = folder, start

    def write(self, number: int, **facts: Any) -> None:
        write_json(self.folder / f"job-{number}.json", {"start": self.start, **facts})

    def read(self, number: int) -> dict[str, Any]:
        """What is known of a job; nothing, if it has not begun since this start."""
        path = self.folder / f"job-{number}.json"
        facts = json.loads(path.read_text()) if path.is_file() else {}
        return facts if facts.get("start") == self.start else {}

    def end(self, number: int, outcome: Outcome) -> Outcome:
        self.write(number, state=outcome.state, folder=outcome.folder, reason=outcome.reason)
        return outcome

    def outcome(self, number: int) -> Outcome | None:
        """How the job ended; None if it has not, as far as anybody wrote."""
        facts = self.read(number)
        return (
            Outcome(facts["state"], facts["folder"], facts["reason"]) if "state" in facts else None
        )

    def outcomes(self, count: int, otherwise: Outcome) -> list[Outcome]:
        """Return every job's outcome: `LOST` for one that began and has none, `otherwise` for one that did not begin."""
        return [
            self.outcome(number) or (LOST if self.read(number) else otherwise)
            for number in range(count)
        ]

    def stop(self) -> None:
        """No further job may begin."""
        write_json(self.folder / "stop.json", {"start": self.start})

    @property
    def stopped(self) -> bool:
        path = self.folder / "stop.json"
        return path.is_file() and json.loads(path.read_text())["start"] == self.start
