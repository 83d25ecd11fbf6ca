"""A search on a tiny phantom, asked for in this process, and the study that it leaves in the working directory."""

import sys

import pytest
from hydra import initialize_config_dir

from brainseg import search
from brainseg.config import SearchConfig, compose

TINY = [
    "data.phantom.patients=8",
    "data.phantom.slices=8",
    "data.phantom.size=32",
    "model.depth=2",
    "model.width=4",
    "epochs=2",
    "batch_size=4",
    "device=cpu",
    "scheduler=none",
]
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command with these arguments."""
    monkeypatch.setattr(sys, "argv", ["search", *arguments])
    with pytest.raises(SystemExit) as stop:
        search.main()
    return stop.value.code


def studied(name: str = "typed") -> list:
    """Return the trials of a study, as Optuna has them, less the proposals that were tried before."""
    import optuna

    study = optuna.load_study(study_name=name, storage=f"sqlite:///runs/search/{name}.db")
    return [trial for trial in study.trials if "repeats" not in trial.user_attrs]


def states(name: str = "typed") -> list[str]:
    return [trial.state.name for trial in studied(name)]


def planned(*overrides: str, **own: object) -> search.Plan:
    compose.schema.register_schema()
    with initialize_config_dir(str(compose.CONFIGS), job_name="search", version_base="1.3"):
        return search.plan_search(list(overrides), SearchConfig(**own))
