"""What an epoch costs besides its steps: gathering, normalising, augmenting, checks, validation, checkpoint, logging, tracking."""

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

from benchmarks.measure import Bar, Section, Spread, Table, interleaved, ratio
from benchmarks.steps import seconds
from brainseg import config as schema
from brainseg import train
from brainseg.config import TrainConfig
from brainseg.config.compose import CONFIGS, compose_job
from brainseg.data import memory_cache
from brainseg.data.open import open_store, read_dataset_info
from brainseg.data.split import make_split
from brainseg.device import choose_device
from brainseg.evaluation.evaluate import evaluate
from brainseg.models import networks
from brainseg.training import losses
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import train_epoch


def task_of(*overrides: str) -> TrainingContext:
    """The task of a request, with its slices in memory, as brainseg.train would have it."""
    schema.register_schema()
    with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
        config: TrainConfig = compose_job("train", list(overrides))
    device, store = choose_device(config.device), open_store(config.data)
    split = make_split(config.split, read_dataset_info(config.data).patients)
    parts = (
        train.dataset(store, config, split.train),
        train.dataset(store, config, split.validation),
    )
    memory_cache.cache_in_memory(parts, device.torch, config.data.resident)
    return TrainingContext(
        config,
        device,
        *parts,
        losses.build_loss(config.loss, networks.num_outputs(store.classes)).to(device.torch),
    )


class Epoch:
    """The engine's own steps, beside bare ones on a batch that is ready, and validation of the same network."""

    def __init__(self, task: TrainingContext, steps: int = 8) -> None:
        self.task, self.steps, self.state = task, steps, train.new_state(task)
        self.forward = task.device.forward(self.state.model)
        batch = task.train.gather(range(task.config.batch_size), task.device.torch)
        self.image, self.mask = task.device.format(batch.image), batch.mask

    def real(self) -> float:
        """Seconds a step of the training loop."""
        self.state.step, self.state.total_steps = 0, self.steps
        return (
            seconds(
                self.task.device.torch,
                lambda: train_epoch(self.state, self.task, self.forward, Callbacks()),
                1,
            )
            / self.steps
        )

    def bare(self) -> float:
        """Seconds a step of nothing but forward, loss, backward and update."""
        self.state.model.train()
        return seconds(self.task.device.torch, self._bare, self.steps) / self.steps

    def _bare(self) -> None:
        self.state.optimizer.zero_grad(set_to_none=True)
        with self.task.device.autocast():
            logits = self.forward(self.image)
        self.task.criterion(logits.float(), self.mask).backward()
        self.state.optimizer.step()

    def validation(self) -> float:
        """Seconds a step's worth of slices takes to validate: segmenting, components, and all scores."""
        task, config = self.task, self.task.config
        started = time.perf_counter()
        for _ in evaluate(
            self.state.validated,
            task.validation,
            config.inference,
            task.device,
            config.batch_size,
            task.criterion,
        ):
            pass
        return (time.perf_counter() - started) / len(task.validation) * task.config.batch_size


def measure(rounds: int, path: str) -> Section:
    """Share of an epoch that is not steps, on the slices of the file at `path`, with the default recipe and each augmentation."""
    rows: list[list[Any]] = []
    bars: list[Bar] = []
    between, tracked = after_epochs(path)
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
        said = interleaved(turns, rounds)
        real, bare = Spread.of(said["real"]), Spread.of(said["bare"])
        whole = (
            task.steps_per_epoch * real.median
            + len(task.validation) / task.config.batch_size * Spread.of(said["validation"]).median
        )
        around = Spread.of([r / b - 1 for r, b in zip(said["real"], said["bare"], strict=True)])
        share = (task.steps_per_epoch * (real.median - bare.median) + between + tracked) / (
            whole + between + tracked
        )
        checked = ratio(said["validation"], said["real"])
        rows.append(
            [
                name,
                real.text(3),
                bare.text(3),
                f"{100 * around.median:.1f} %",
                f"{100 * share:.1f} %",
                checked.text(2),
            ]
        )
        if not overrides:
            bars.append(
                Bar(
                    "what an epoch costs besides its steps and validation",
                    "at most 8 %",
                    f"{100 * share:.1f} %",
                    share <= 0.08,
                )
            )
            bars.append(
                Bar(
                    "validation, of the time of as many training slices",
                    "at most 0.4",
                    checked.text(2),
                    checked.median <= 0.4,
                )
            )
    columns = [
        "recipe",
        "s a step",
        "s a bare step",
        "around a step",
        "besides, in an epoch",
        "validation / training",
    ]
    note = (
        f"{task.device.resolved}; {len(task.train)} training slices, batches of {task.config.batch_size}, {task.steps_per_epoch} steps an "
        f"epoch. A bare step has its batch at hand. Checkpoint and log {between:.2f} s an epoch, MLflow {tracked:.2f} s."
    )
    return Section([Table("An epoch", columns, rows, note)], bars)


def after_epochs(path: str) -> tuple[float, float]:
    """Seconds between the epochs of a real run for checkpoint and log, and what MLflow adds."""
    return (without := _gap(path, "tracking=none")), max(0.0, _gap(path) - without)


def _gap(path: str, *overrides: str) -> float:
    """The least seconds between the end of an epoch's validation and the next epoch's first step."""
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
    whole = [
        (b["time"] - a["time"]) / 1000 - b["metrics"]["speed/epoch_seconds"]
        for a, b in itertools.pairwise(epochs)
    ]
    return Spread.of(whole).median
