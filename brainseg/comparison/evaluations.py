"""Folders of `brainseg.evaluate` in a comparison: ensembles, other inference settings, other data.

An evaluation has the settings of the run whose network it scored, with the inference settings of
the evaluation. An ensemble also has the setting `members`.
"""

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from brainseg.comparison.runs import ScoredRun
from brainseg.config import InferenceConfig, TrainConfig
from brainseg.core.errors import check


class ScoredEvaluation(ScoredRun):
    """A folder of `brainseg.evaluate`, read for comparison."""

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())

    @cached_property
    def members(self) -> list[ScoredRun]:
        """Return the runs whose networks were scored, several for an ensemble.

        Raises RequestError if the folder of one of them is not on this machine.
        """
        # A checkpoint lies in checkpoints/ of its run folder.
        folders = [Path(file).parent.parent for file in self.summary.get("files", [])]
        missing = next((folder for folder in folders if not (folder / "run.json").is_file()), None)
        check(
            bool(folders) and missing is None,
            "runs",
            self.path,
            f"an evaluation without its run folder {missing or ''}".rstrip(),
            "evaluate again, with a run folder as checkpoint",
        )
        return [ScoredRun(folder) for folder in folders]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return the content of run.json of the first member, as far as it holds here."""
        first = self.members[0].facts
        name = first["name"].rsplit("-", 1)[0]
        ensemble = f" ensemble of {len(self.members)}" if len(self.members) > 1 else ""
        text = json.dumps([self.summary["uid"], self.summary["inference"]])
        return first | {
            "uid": hashlib.sha256(text.encode()).hexdigest()[:32],
            "name": f"{name}{ensemble}-evaluation",
            "created": self.end_time,
            "parameters": sum(member.facts["parameters"] for member in self.members),
            "data": self.summary["data"],
            "split": first["split"] | {"leaky": self.summary["leaky"]},
            "note": None,
            "tags": [],
        }

    @cached_property
    def config(self) -> TrainConfig:
        inference = InferenceConfig(**self.summary["inference"])
        # The seeds of an ensemble are no repeats, so that its smallest seed stands for it.
        seed = min(member.config.seed for member in self.members)
        return replace(self.members[0].config, seed=seed, inference=inference)

    @property
    def state(self) -> str:
        return "finished"

    @property
    def start_time(self) -> int:
        return self.end_time

    @property
    def end_time(self) -> int:
        """Return the time of the evaluation in milliseconds since 1970."""
        return round((self.path / "summary.json").stat().st_mtime * 1000)

    @property
    def additional_settings(self) -> dict[str, Any]:
        """Return `members`, the number of an ensemble's runs, or their names if they differ."""
        if len(self.members) == 1:
            return {}
        is_uniform = len({member.configuration for member in self.members}) == 1
        names = "+".join(member.path.name for member in self.members)
        return {"members": len(self.members) if is_uniform else names}

    @property
    def budget(self) -> tuple[str, float]:
        unit, amount = super().budget
        return unit, amount * len(self.members)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return that of the run, or nothing for an ensemble, which has no curve."""
        return self.members[0].history if len(self.members) == 1 else []

    @property
    def seconds(self) -> float:
        return sum(member.seconds for member in self.members)

    def median_speed(self, name: str) -> float:
        return self.members[0].median_speed(name)

    @property
    def memory(self) -> float:
        return max(member.memory for member in self.members)


def is_evaluation(path: Path) -> bool:
    """Return True for a folder that `brainseg.evaluate` wrote."""
    file = path / "summary.json"
    return (
        not (path / "run.json").exists()
        and (path / "patients.csv").is_file()
        and file.is_file()
        and "chosen_among" in json.loads(file.read_text())
    )
