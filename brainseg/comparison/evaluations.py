"""Folders of `brainseg.evaluate` in a comparison: ensembles, other inference settings, other data.

An evaluation has the settings of the run whose network it scored, with the inference settings of
the evaluation. An ensemble also has the setting `members`.
"""

import hashlib
import json
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from brainseg.comparison.runs import ScoredRun
from brainseg.config import InferenceConfig, TrainConfig
from brainseg.core.errors import check
from brainseg.core.places import relocated_path


class ScoredEvaluation(ScoredRun):
    """A folder of `brainseg.evaluate`, read for comparison."""

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())

    @cached_property
    def checkpoints(self) -> list[Path]:
        """Return the files that were scored, where they are now."""
        files = self.summary.get("files", [])
        return [relocated_path(file, self.path, self.summary) for file in files]

    @cached_property
    def trained_runs(self) -> list[ScoredRun]:
        """Return the runs whose networks were scored, several for an ensemble, in a fixed order.

        Raises RequestError if one of them is not on this machine, or has become another run.
        """
        # A checkpoint lies in checkpoints/ of its run folder.
        folders = [file.parent.parent for file in self.checkpoints]
        missing = next((folder for folder in folders if not (folder / "run.json").is_file()), None)
        remedy = "evaluate again, with a run folder as checkpoint"
        rule = f"an evaluation without its run folder {missing or ''}".rstrip()
        check(bool(folders) and missing is None, "runs", self.path, rule, remedy)
        runs = [ScoredRun(folder) for folder in folders]
        for run, uid in zip(runs, self.summary["uid"], strict=True):
            rule = f"{run.path} contains another run now than the one that was evaluated"
            check(run.facts["uid"] == uid, "runs", self.path, rule, "evaluate again")
        return sorted(runs, key=lambda run: (run.configuration, run.config.seed))

    @cached_property
    def members(self) -> list[str]:
        """Return the configurations of the runs, without their devices."""
        return [replace(run, ignored=("device",)).configuration for run in self.trained_runs]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return the content of run.json of the first run, as far as it holds here."""
        first = self.trained_runs[0].facts
        name = first["name"].rsplit("-", 1)[0]
        ensemble = f" ensemble of {len(self.members)}" if len(self.members) > 1 else ""
        data = self.summary["data"]
        text = json.dumps([self.summary["uid"], self.summary["inference"], data["fingerprint"]])
        return first | {
            "uid": hashlib.sha256(text.encode()).hexdigest()[:32],
            "name": f"{name}{ensemble}-evaluation",
            "created": self.end_time,
            "parameters": sum(run.facts["parameters"] for run in self.trained_runs),
            "data": data,
            "split": first["split"] | {"leaky": self.summary["leaky"]},
            # The folder from which `relocated_path` finds the data after a move.
            "path": self.summary["path"],
            "note": None,
            "tags": [],
        }

    @cached_property
    def config(self) -> TrainConfig:
        inference = InferenceConfig(**self.summary["inference"])
        # The seeds of an ensemble are no repeats, so that its smallest seed stands for it.
        seed = min(run.config.seed for run in self.trained_runs)
        return replace(self.trained_runs[0].config, seed=seed, inference=inference)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return every setting that changes results, without those in which members differ."""
        settings = super().settings
        of_runs = [run.settings for run in self.trained_runs]
        return {
            name: value
            for name, value in settings.items()
            if name == "seed"
            or name.startswith("inference.")
            or name in self.additional_settings
            or all(each.get(name) == value for each in of_runs)
        }

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

    @cached_property
    def additional_settings(self) -> dict[str, Any]:
        """Return `members` of an ensemble, and the checkpoint unless it is that of the best epoch.

        `members` is the number of members, with a hash of their configurations if these differ.
        """
        names = sorted({file.stem for file in self.checkpoints} - {"best"})
        settings: dict[str, Any] = {"checkpoint": "+".join(names)} if names else {}
        if len(self.members) > 1:
            digest = hashlib.sha256(json.dumps(sorted(self.members)).encode()).hexdigest()[:6]
            count = len(self.members)
            settings["members"] = count if len(set(self.members)) == 1 else f"{count}-{digest}"
        return settings

    @property
    def budget(self) -> tuple[str, float]:
        """Return the sum of the members' budgets, or a unit of its own if they are in several."""
        budgets = [run.budget for run in self.trained_runs]
        units = sorted({unit for unit, _ in budgets})
        return "+".join(units), sum(amount for _, amount in budgets)

    @property
    def evaluate_arguments(self) -> list[str]:
        files = ",".join(str(file) for file in self.checkpoints)
        trained, ours = self.trained_runs[0].config.inference, self.config.inference
        changes = [
            f"inference.{field.name}={getattr(ours, field.name)}"
            for field in fields(InferenceConfig)
            if getattr(ours, field.name) != getattr(trained, field.name)
        ]
        return [
            f"checkpoint=[{files}]" if len(self.members) > 1 else f"checkpoint={files}",
            *changes,
        ]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Return that of the run, or nothing for an ensemble, which has no curve."""
        return self.trained_runs[0].history if len(self.members) == 1 else []

    @property
    def seconds(self) -> float:
        return sum(run.seconds for run in self.trained_runs)

    def median_speed(self, name: str) -> float:
        return self.trained_runs[0].median_speed(name)

    @property
    def memory(self) -> float:
        return max(run.memory for run in self.trained_runs)


def is_evaluation(path: Path) -> bool:
    """Return True for a folder that `brainseg.evaluate` wrote."""
    if (path / "run.json").exists() or not (path / "patients.csv").is_file():
        return False
    try:
        return "chosen_among" in json.loads((path / "summary.json").read_text())
    except (OSError, ValueError):
        return False
