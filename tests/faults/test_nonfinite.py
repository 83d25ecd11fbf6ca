"""A loss or a gradient that is not finite, at any step: named, never in a checkpoint, and without it the run goes on to the same bits."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from harness import Child, Result, settings, sizes, spread, survives, train
from torch import Tensor, nn

from brainseg.config import TrainConfig
from brainseg.runs import checkpoint
from brainseg.runs.run_folder import RunFolder
from brainseg.training import losses

SLICES = re.compile(r"slices: \w+ slice \d+(, \w+ slice \d+)*$")
STEPS, EPOCH_STEPS = 12, 4  # of `harness.settings`


class Case(NamedTuple):
    """The training step that goes wrong, counted from 0, and what in it."""

    step: int
    what: str  # loss or gradient


class Poisoned(nn.Module):
    """A criterion with one step gone wrong."""

    def __init__(self, criterion: nn.Module, case: Case) -> None:
        super().__init__()
        self.criterion, self.case, self.step = criterion, case, 0

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        loss = self.criterion(logits, mask)
        if not logits.requires_grad:  # a validation
            return loss
        self.step += 1
        if self.step - 1 != self.case.step:
            return loss
        return (
            loss * float("nan") if self.case.what == "loss" else loss + (0 * logits.sum()).sqrt()
        )  # of 0, whose slope is infinite


def train_poisoned(config: TrainConfig, case: Case) -> None:
    loss = losses.build_loss
    losses.build_loss = lambda *asked: Poisoned(loss(*asked), case)  # type: ignore[assignment]
    train(config)


@pytest.fixture(scope="module")
def unharmed(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("unharmed") / "run"
    ended = Child(train, settings(folder, phantom_file)).end()
    assert ended.code == 0, ended.said
    return Result.of(folder)


def stops(data: Path, unharmed: Result, root: Path, case: Case) -> str | None:
    """The run fails at this step and says so; resumed without the fault it comes to what it would have come to."""
    folder = root / f"{case.what}{case.step}"
    ended = Child(train_poisoned, settings(folder, data, resume="auto"), case).end()
    status, epoch, step = RunFolder(folder).status, *divmod(case.step, EPOCH_STEPS)
    if ended.code != 1 or status["state"] != "failed":
        return f"{case}: exit {ended.code}, {status}\n{ended.said}"
    if f"at epoch {epoch} step {step}: not finite" not in status["error"] or not SLICES.search(
        status["error"]
    ):
        return f"{case}: says {status['error']}"
    if wrong := not_finite(folder):
        return f"{case}: {wrong}"
    again = Child(train, settings(folder, data, resume="auto")).end()
    if again.code != 0:
        return f"{case}: exit {again.code} of the resume\n{again.said}"
    differing = Result.of(folder).differs(unharmed)
    shutil.rmtree(folder)
    return f"{case}: differs in {len(differing)}: {differing[:5]}" if differing else None


def skips(data: Path, root: Path, case: Case) -> str | None:
    """Under on_nonfinite=skip the step is left out, counted in its epoch and logged; the run goes to its end."""
    folder = root / f"skip-{case.what}{case.step}"
    ended = Child(train_poisoned, settings(folder, data, on_nonfinite="skip"), case).end()
    if ended.code != 0 or RunFolder(folder).state != "finished":
        return f"{case}: exit {ended.code}\n{ended.said}"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    skipped = [row["metrics"]["train/skipped_steps"] for row in rows]
    if sum(skipped) != 1 or skipped[case.step // EPOCH_STEPS] != 1:
        return f"{case}: counted {skipped}"
    if (folder / "log.txt").read_text().count("not finite, step left out; slices: ") != 1:
        return f"{case}: the log does not say so"
    return not_finite(folder)


def not_finite(folder: Path) -> str | None:
    """A number in a checkpoint that is not finite."""
    for path in folder.glob("checkpoints/*.pt"):
        for name, value in everything(checkpoint.load(path)).items():
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and not torch.isfinite(value).all()
            ):
                return f"{path.name} holds {name}, not finite"
    return None


def everything(content: Any, name: str = "") -> dict[str, Any]:
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {
            key: value
            for part, inner in items
            for key, value in everything(inner, f"{name}.{part}").items()
        }
    return {name: content}


EVERY = [Case(step, what) for step in range(STEPS) for what in ("loss", "gradient")]


@sizes(1, None)
def test_it_stops_the_run_before_the_update(
    phantom_file: Path, unharmed: Result, tmp_path: Path, cases: int | None
) -> None:
    survives(partial(stops, phantom_file, unharmed, tmp_path), spread(EVERY, cases))


@sizes(1, None)
def test_it_can_be_left_out(phantom_file: Path, tmp_path: Path, cases: int | None) -> None:
    survives(partial(skips, phantom_file, tmp_path), spread(EVERY, cases))
