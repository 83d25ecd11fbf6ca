"""Estimate of a run's time and memory, for dry_run=measure."""

from brainseg.config import TrainConfig
from brainseg.data import memory_cache
from brainseg.data.open import open_run_data
from brainseg.device import choose_device, peak_memory
from brainseg.training.build import build_state, build_task
from brainseg.training.context import Callbacks
from brainseg.training.time_budget import measure_pace


def measure_run(config: TrainConfig, threads: int | None = None) -> tuple[float, int]:
    """Return the seconds and the bytes of memory of a run, estimated from a few steps.

    The memory is that of the GPU if the run computes on one. `threads` is a launcher's share of the
    cores, as in `Job`. Call this function in a process of its own, because a process keeps the
    memory of earlier work.
    """
    device = choose_device(config.device, threads)
    task = build_task(config, device, open_run_data(config.data, config.split))
    memory_cache.cache_in_memory((task.train, task.validation), device.torch, config.data.resident)
    pace = measure_pace(build_state(task), task, Callbacks())
    # The first part of the steps sees images of half the size, which cost less.
    step = config.half_resolution * pace.half_step + (1 - config.half_resolution) * pace.step
    epochs = config.max_steps / task.steps_per_epoch if config.max_steps else config.epochs
    seconds = epochs * (task.steps_per_epoch * step + pace.validation / config.validate_every)
    return config.max_minutes * 60 if config.max_minutes else seconds, peak_memory(device)
