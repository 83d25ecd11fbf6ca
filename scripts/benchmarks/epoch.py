"""Benchmark of the overhead of an epoch.

The overhead is the time besides the steps: gathering, normalising, augmenting, checks, validation,
checkpoint, logging and tracking.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir

from benchmarks.measure import Bar, Section, Spread, Table, measure_in_turns, ratio
from benchmarks.steps import seconds
from brainseg import config as schema
from brainseg.config import TrainConfig
from brainseg.config.compose import CONFIGS, compose_job
from brainseg.data import memory_cache
from brainseg.data.open import open_run_data
from brainseg.device import choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.training.build import build_state, build_task
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import train_epoch


def task_of(*overrides: str) -> TrainingContext:
    """Return the training context of a request as in brainseg.train, with its slices in memory."""
    schema.register_schema()
    with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
        config: TrainConfig = compose_job("train", list(overrides))
    device = choose_device(config.device)
    task = build_task(config, device, open_run_data(config.data, config.split))
    parts = (task.train, task.validation)
    memory_cache.cache_in_memory(parts, device.torch, config.data.resident)
    return task


class Epoch:
    """Steps of the training loop, bare steps on a prepared batch, and validation of the network."""

    def __init__(self, task: TrainingContext, steps: int = 8) -> None:
        self.task, self.steps, self.state = task, steps, build_state(task)
        self.forward = task.device.forward(self.state.model)
        batch = task.train.gather(range(task.config.batch_size), task.device.torch)
        self.image, self.mask = task.device.format(batch.image), batch.mask

    def real(self) -> float:
        """Return the seconds per step of the training loop."""
        # The counter starts again, so that every call trains the same number of steps.
        self.state.step, self.state.total_steps = 0, self.steps

        def run_epoch() -> None:
            train_epoch(self.state, self.task, self.forward, Callbacks())

        return seconds(self.task.device.torch, run_epoch, 1) / self.steps

    def bare(self) -> float:
        """Return the seconds per step of only forward pass, loss, backward pass and update."""
        self.state.model.train()
        return seconds(self.task.device.torch, self._bare_step, self.steps) / self.steps

    def _bare_step(self) -> None:
        self.state.optimizer.zero_grad(set_to_none=True)
        with self.task.device.autocast():
            logits = self.forward(self.image)
        self.task.criterion(logits.float(), self.mask).backward()
        self.state.optimizer.step()

    def validation(self) -> float:
        """Return the seconds that the validation of one batch of slices takes.

        The validation consists of segmentation, components and all scores.
        """
        task, config = self.task, self.task.config
        started = time.perf_counter()
        for _ in evaluate(
            self.state.evaluated_model,
            task.validation,
            config.inference,
            task.device,
            config.batch_size,
            task.criterion,
        ):
            pass
        return (time.perf_counter() - started) / len(task.validation) * task.config.batch_size


def measure(rounds: int, path: str) -> Section:
    """Measure the overhead of an epoch on the slices of the file at `path`.

    The recipes are the default recipe and one with neighbouring slices.
    """
    rows: list[list[Any]] = []
    bars: list[Bar] = []
    checkpoint_time, tracking_time = after_epochs(path)
    pauses = checkpoint_time + tracking_time
    for name, overrides in {
        "default recipe": [],
        "with neighbouring slices (data.context=1)": ["data.context=1"],
    }.items():
        task = task_of(f"data.path={path}", *overrides)
        epoch = Epoch(task)
        turns: dict[str, Callable[[], float]] = {
            "real": epoch.real,
            "bare": epoch.bare,
            "validation": epoch.validation,
        }
        times = measure_in_turns(turns, rounds)
        real, bare = Spread.of(times["real"]), Spread.of(times["bare"])
        batches = len(task.validation) / task.config.batch_size
        training_time = task.steps_per_epoch * real.median
        validation_time = batches * Spread.of(times["validation"]).median
        step_overhead = Spread.of(
            [a / b - 1 for a, b in zip(times["real"], times["bare"], strict=True)]
        )
        # The share of an epoch that is neither a bare step nor validation.
        overhead = task.steps_per_epoch * (real.median - bare.median) + pauses
        share = overhead / (training_time + validation_time + pauses)
        validation_ratio = ratio(times["validation"], times["real"])
        rows.append(
            [
                name,
                real.text(3),
                bare.text(3),
                f"{100 * step_overhead.median:.1f} %",
                f"{100 * share:.1f} %",
                validation_ratio.text(2),
            ]
        )
        if not overrides:
            bars.append(
                Bar(
                    "overhead of an epoch besides its steps and validation",
                    "at most 8 %",
                    f"{100 * share:.1f} %",
                    share <= 0.08,
                )
            )
            bars.append(
                Bar(
                    "time of validation, relative to training on as many slices",
                    "at most 0.4",
                    validation_ratio.text(2),
                    validation_ratio.median <= 0.4,
                )
            )
    columns = [
        "recipe",
        "s per step",
        "s per bare step",
        "overhead of a step",
        "overhead of an epoch",
        "validation / training",
    ]
    note = (
        f"{task.device.description}. {len(task.train)} training slices, batches of "
        f"{task.config.batch_size}, {task.steps_per_epoch} steps per epoch. The batch of a bare "
        f"step is prepared beforehand. Checkpoint and log take {checkpoint_time:.2f} s per epoch, "
        f"MLflow takes {tracking_time:.2f} s."
    )
    return Section([Table("An epoch", columns, rows, note)], bars)


def after_epochs(path: str) -> tuple[float, float]:
    """Return the seconds per epoch for checkpoint and log, and the seconds that MLflow adds."""
    without_tracking = _measure_gap(path, "tracking=none")
    return without_tracking, max(0.0, _measure_gap(path) - without_tracking)


def _measure_gap(path: str, *overrides: str) -> float:
    """Return the median seconds between an epoch's validation and the next epoch's first step."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["data.limit_patients=6", "split=kfold", "split.folds=3", "epochs=6", "test=no"]
        request = [f"data.path={Path(path).resolve()}", *small, "output=run"]
        subprocess.run(
            [sys.executable, "-m", "brainseg.train", *request, *overrides],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        epochs = [
            json.loads(line)
            for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        ]
    # The time between two rows contains the second epoch itself, which is not part of the gap.
    gaps = [
        (current["time"] - previous["time"]) / 1000 - current["metrics"]["speed/epoch_seconds"]
        for previous, current in itertools.pairwise(epochs)
    ]
    return Spread.of(gaps).median
