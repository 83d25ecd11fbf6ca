"""The training loop. It writes no files and does not use MLflow: the caller passes callbacks.

No random state is stored. Before each step torch is seeded from (seed, epoch, step), and the order
of an epoch's slices is a function of (seed, epoch). A `State` that is saved at step k and loaded
again therefore continues to the same bits as a run that was never interrupted.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from brainseg.config import AugmentConfig, TrainConfig
from brainseg.core.seeds import seed_for
from brainseg.data import augment
from brainseg.data.epoch_order import epoch_order
from brainseg.data.resize import downsample_by_two
from brainseg.evaluation.evaluate import evaluate
from brainseg.evaluation.metrics import summarise
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.cuda_graphs import Forward, training_forward
from brainseg.training.losses import deeply_supervised_loss
from brainseg.training.nonfinite import collect_step_results, explaining_out_of_memory
from brainseg.training.replan import replan
from brainseg.training.schedules import learning_rate_factor
from brainseg.training.state import State, StepResult, Window


def fit(state: State, task: TrainingContext, hooks: Callbacks) -> None:
    """Train until `state.total_steps`, or until val/dice has not risen for `patience` epochs.

    Training continues from wherever `state` is.
    """
    state.last_tick = time.monotonic()
    state.window = Window(state.step, state.elapsed)
    with (
        explaining_out_of_memory(task),
        training_forward(state.model, task.config, task.device) as forward,
    ):
        while _is_unfinished(state, task.config):
            train_epoch(state, task, forward, hooks)
            metrics = training_metrics(state, task)
            is_last = state.step == state.total_steps
            is_due = is_last or (state.epoch + 1) % task.config.validate_every == 0
            if is_due and len(task.validation):
                metrics |= validate(state, task, hooks)
            metrics |= hooks.epoch_metrics()
            improved = _finish_epoch(state, metrics, has_validation=len(task.validation) > 0)
            hooks.after_epoch(state, improved)


def train_epoch(state: State, task: TrainingContext, forward: Forward, hooks: Callbacks) -> None:
    """Take the remaining steps of the current epoch.

    On a GPU the losses stay on the device until the epoch ends. Call `collect_step_results` before
    saving the state. Under on_nonfinite=skip the host waits for each step, so that the statistics
    of batch norm can be restored.
    """
    config, device = task.config, task.device
    order = epoch_order(
        task.train, config.seed, state.epoch, config.data.tumour_share, config.data.even_patients
    )
    # An epoch that a time budget cut short stays short when the run is extended.
    first = state.epoch_began
    end = min(first + task.steps_per_epoch, state.total_steps)
    # Reading a loss on a GPU waits for all queued work. On a CPU it costs nothing.
    check_each_step = not device.is_asynchronous or config.on_nonfinite == "skip"
    state.model.train()
    while state.step < end:
        started = time.perf_counter()
        torch.manual_seed(seed_for(config.seed, "step", state.epoch, state.step - first))
        set_learning_rate(state, task)
        slices_per_step = config.batch_size * config.accumulate
        positions = order[(state.step - first) * slices_per_step :][:slices_per_step]

        # The forward pass updates the statistics of batch norm before the loss is known.
        buffers = (
            [buffer.clone() for buffer in state.model.buffers()]
            if config.on_nonfinite == "skip"
            else []
        )
        state.optimizer.zero_grad(set_to_none=True)
        step_loss = torch.zeros((), device=device.torch)
        for rows in np.split(
            positions, range(config.batch_size, len(positions), config.batch_size)
        ):
            image, mask = task.train.gather(rows, device.torch)
            if state.resizing.is_half(state.step):
                image, mask = downsample_by_two(image, mask, len(task.train.store.classes))
            image, mask = augment_batch(config.augment, image, mask, task.train.sequences)
            with device.autocast():
                output = forward(device.format(image))
            # The weights make the sum over the batches the mean over the step's slices.
            loss = deeply_supervised_loss(task.criterion, output, mask)
            loss = loss * (len(rows) / len(positions))
            state.scaler.scale(loss).backward()
            step_loss += loss.detach()
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm or math.inf)

        state.pending_steps.append(StepResult(state.step - first, positions, step_loss, norm))
        if not check_each_step or collect_step_results(state, task):
            state.scaler.step(state.optimizer)
            if state.average is not None:
                state.average.update_parameters(state.model)
        else:
            for buffer, former in zip(state.model.buffers(), buffers, strict=True):
                buffer.copy_(former)
        # A skipped step needs the update, too: without it torch refuses the next unscale_.
        state.scaler.update()

        state.step += 1
        plan_is_due = (
            bool(state.plans)
            and not state.plans[-1].is_settled
            and state.step == state.plans[-1].next_step
        )
        if state.step == end or plan_is_due:
            collect_step_results(state, task)
        if plan_is_due:
            replan(state, task)
            end = min(first + task.steps_per_epoch, state.total_steps)
        state.seconds += time.perf_counter() - started
        hooks.after_step(state)


def augment_batch(
    config: AugmentConfig, image: Tensor, mask: Tensor, sequences: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Augment one batch: image float32 (B, C, H, W) and mask uint8 (B, 1, H, W) share one draw."""
    draw = augment.sample_augmentation(
        config, image.shape[0], image.shape[1], device=image.device, sequences=sequences
    )
    return augment.apply_augmentation(draw, image, mask)


def set_learning_rate(state: State, task: TrainingContext) -> float:
    """Set and return the learning rate of the next step.

    The rate is a function of the step and, under plateau, of the validations so far.
    """
    config = task.config
    rate = config.optimizer.lr * learning_rate_factor(
        config.scheduler,
        state.step,
        state.resizing,
        task.steps_per_epoch,
        config.half_resolution,
        state.plans,
    )
    rate *= state.plateau.factor if state.plateau is not None else 1.0
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    return rate


def training_metrics(state: State, task: TrainingContext) -> dict[str, float]:
    """Return the training loss, learning rate and speed of the epoch."""
    return {
        "train/loss": state.loss_sum / max(state.slices_seen, 1),
        "train/learning_rate": float(state.optimizer.param_groups[0]["lr"]),
        **(
            {"train/skipped_steps": float(state.skipped)}
            if task.config.on_nonfinite == "skip"
            else {}
        ),
        "speed/images_per_second": state.slices_seen / max(state.seconds, 1e-9),
        "speed/epoch_seconds": state.seconds,
    }


def validate(state: State, task: TrainingContext, hooks: Callbacks) -> dict[str, float]:
    """Return the `val/...` metrics of the validation patients, without surface distances.

    These are measured once, at the end of the run: on a GPU they would take longer than training.
    The result also contains "speed/epoch_seconds", which includes the validation and replaces the
    value of `training_metrics`. `state` gets the seconds of the validation, and whether nothing was
    predicted. `hooks.see_result` and `hooks.after_patient` are called after each patient.
    """
    started = time.perf_counter()
    scores = []
    config = task.config
    for result in evaluate(
        state.evaluated_model,
        task.validation,
        config.inference,
        task.device,
        config.batch_size,
        task.criterion_on_cpu,
        with_geometry=False,
    ):
        scores.append(result.score)
        hooks.see_result(result)
        hooks.after_patient(state)
    state.predicts_nothing = not any(score.predicted_pixels for score in scores)
    state.validation_seconds = time.perf_counter() - started
    if state.window is not None:
        state.window = state.window._replace(
            validating=state.window.validating + state.validation_seconds
        )
    return summarise(scores, "val") | {
        "speed/epoch_seconds": state.seconds + time.perf_counter() - started
    }


def _finish_epoch(state: State, metrics: dict[str, float], has_validation: bool) -> bool:
    """Append the epoch to the history, begin the next one, and return True for the best so far.

    Without validation patients each epoch counts as the best, so that the last weights are kept.
    Otherwise the best epoch has the highest val/dice and, among equal values, the lowest val/loss.
    While a network predicts nothing, val/dice does not change (it is 0 if every patient has
    tumour), but val/loss falls. Patience and plateau begin to count at full size: val/dice is
    measured on full-size slices, and stays low while the network is trained at half size.
    """
    dice, loss = metrics.get("val/dice", -1.0), metrics.get("val/loss", math.inf)
    improved = "val/dice" in metrics and (dice, -loss) > (state.best, -state.best_loss)
    if dice > state.best:
        state.risen_epoch = state.epoch
    if improved:
        state.best, state.best_loss, state.best_epoch = dice, loss, state.epoch
    if not has_validation:
        improved, state.best_epoch = True, state.epoch
    state.history.append(
        {
            "epoch": state.epoch,
            "step": state.step,
            "time": round(time.time() * 1000),
            "metrics": metrics,
        }
    )
    if "val/dice" in metrics and state.resizing.is_score_meaningful(state.step):
        last_half_epoch = (
            sum(not state.resizing.is_score_meaningful(row["step"]) for row in state.history) - 1
        )
        state.bad_epochs = state.epoch - max(state.risen_epoch, last_half_epoch)
        if state.plateau is not None:
            state.plateau.update(metrics["val/dice"])
    state.epoch += 1
    state.loss_sum, state.slices_seen, state.seconds, state.skipped = 0.0, 0, 0.0, 0
    return improved


def _is_unfinished(state: State, config: TrainConfig) -> bool:
    """Return True if steps are left, or if an epoch has been trained but not validated.

    The latter happens if a run is stopped between its last step and the end of the validation.
    """
    out_of_patience = config.patience is not None and state.bad_epochs >= config.patience
    return state.slices_seen + state.skipped > 0 or (
        state.step < state.total_steps and not out_of_patience
    )
