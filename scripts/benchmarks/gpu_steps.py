"""Training steps on a GPU in images per second, by precision, memory format, graphs and batch."""

from statistics import median
from typing import Any

import torch

from benchmarks.steps import REFERENCE, Steps, seconds
from brainseg.config import DeviceConfig, TrainConfig
from brainseg.training.cuda_graphs import training_forward

# Contestants by name, as settings of `device`. The first one is the plain loop of a tutorial.
CONTESTANTS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "channels_last": False, "graphs": "no"},
    "bf16": {"precision": "bfloat16", "channels_last": False, "graphs": "no"},
    "bf16, channels_last": {"precision": "bfloat16", "graphs": "no"},
    "bf16, channels_last, graph": {"precision": "bfloat16", "graphs": "yes"},
    "fp16, channels_last, graph": {"precision": "float16", "graphs": "yes"},
}
# Images per second that were predicted for an H100 before the first run on a GPU, at batch 8.
PREDICTED = {"bf16, channels_last": "1,500 to 2,000", "bf16, channels_last, graph": "3,500"}
BATCHES = (8, 16, 64)
WARM_UP, STEPS, ROUNDS = 6, 20, 3


def measure(name: str, batches: tuple[int, ...] = BATCHES) -> list[dict[str, Any]]:
    """Return a row for each batch size and contestant on the device `name`: images per second."""
    rows = []
    for batch in batches:
        for label, settings in CONTESTANTS.items():
            # A CPU without instructions for half precision takes seconds per image.
            if name == "cpu" and settings["precision"] != "float32":
                continue
            rows.append({"batch": batch, "setting": label, "rate": rate(name, batch, settings)})
    return rows


def rate(name: str, batch: int, settings: dict[str, Any]) -> float:
    """Return the images per second of the reference network, the median of three rounds."""
    device: dict[str, Any] = {"name": name, **settings}
    contestant = Steps(REFERENCE | {"batch": batch}, device)
    contestant.model.train()
    config = TrainConfig(batch_size=batch, device=DeviceConfig(**device))
    # `Steps` calls its model as the training loop calls this callable.
    with training_forward(contestant.model, config, contestant.device) as contestant.forward:
        times = STEPS if name != "cpu" else 1
        seconds(contestant.device.torch, contestant.step, min(WARM_UP, times))
        rates = [
            times * batch / seconds(contestant.device.torch, contestant.step, times)
            for _ in range(ROUNDS if name != "cpu" else 1)
        ]
    if name != "cpu":
        torch.cuda.empty_cache()
    return median(rates)
