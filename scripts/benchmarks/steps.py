"""Benchmark of training steps in images per second.

Each device setting is compared with the plain loop and with the bare convolutions (the roofline).
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Bar, Section, Spread, Table, Worker, measure_in_turns, ratio, serve
from brainseg.config import DeviceConfig, LossConfig, OptimizerConfig, UNetConfig
from brainseg.core.errors import RequestError
from brainseg.device import Device, choose_device
from brainseg.models import networks
from brainseg.training import losses, optimizers

SETTINGS = {
    "cpu": {"name": "cpu", "precision": "float32"},
    "cpu_bf16": {"name": "cpu", "precision": "bfloat16"},
    "cuda": {"name": "cuda", "precision": "float32"},
    "cuda_bf16": {"name": "cuda", "precision": "bfloat16"},
    "mps": {"name": "mps", "precision": "float32"},
}
# The plain loop with the memory settings of brainseg.
PLAIN_KEPT = {"name": "cpu", "precision": "float32", "channels_last": False}
REFERENCE = {"depth": 4, "width": 32, "growth": 1, "size": 256, "channels": 3, "batch": 8}


def wait(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(device: torch.device, work: Callable[[], Any], times: int) -> float:
    """Return the seconds that a number of calls of `work` take on the device."""
    # A GPU works asynchronously, so the clock must not start or stop before its queue is empty.
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return time.perf_counter() - started


class Steps:
    """Training steps on one batch of random images.

    Without a `device`, they are those of a tutorial's loop: float32, NCHW, and torch's default
    memory settings.
    """

    def __init__(self, shape: dict[str, Any], device: dict[str, Any] | None) -> None:
        # All contestants get the same weights and the same images.
        torch.manual_seed(0)
        self.shape = shape
        plain = Device(
            torch.device("cpu"), "float32", False, False, "plain", torch.get_num_threads()
        )
        self.device = choose_device(DeviceConfig(**device)) if device else plain
        model = UNetConfig(
            depth=shape["depth"],
            width=shape["width"],
            growth=shape["growth"],
            stem=shape.get("stem", 1),
        )
        # The size is that of a square, or a height and a width.
        size = shape["size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.model = self.device.place(
            networks.build_network(model, shape["channels"], 1, (height, width))
        )
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.loss = losses.build_loss(LossConfig(**shape.get("loss", {"name": "dice"})))
        self.optimizer = optimizers.build_optimizer(
            OptimizerConfig(shape.get("optimizer", "adam"), lr=1e-4), self.model.parameters()
        )
        batch_shape = (shape["batch"], shape["channels"], height, width)
        mask_shape = (shape["batch"], 1, height, width)
        self.image = self.device.format(torch.rand(*batch_shape, device=self.device.torch))
        tumour = torch.rand(*mask_shape, device=self.device.torch) > 0.9
        self.mask = tumour.to(torch.uint8)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.device.autocast():
            logits = self.forward(self.image)
        self.loss(logits.float(), self.mask).backward()
        self.optimizer.step()

    def rate(self, times: int = 2) -> float:
        return times * self.shape["batch"] / seconds(self.device.torch, self.step, times)


class Convolutions:
    """The convolutions of the network alone, forward and backward.

    They have the precision and the memory format of the device setting. There is no normalization,
    no ReLU and no loss.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            steps.device.precision
        ]

        def record_shapes(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shapes.append((module, inputs[0].shape, output.shape))

        # One forward pass with hooks finds the shapes, in the order of the calls.
        shapes: list[tuple[nn.Module, torch.Size, torch.Size]] = []
        convolutions = [
            module
            for module in steps.model.modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        ]
        handles = [
            module.register_forward_hook(record_shapes, prepend=True) for module in convolutions
        ]
        with torch.no_grad():
            steps.model(steps.image)
        for handle in handles:
            handle.remove()
        for index, (module, input_shape, output_shape) in enumerate(shapes):
            bare = (nn.Conv2d if isinstance(module, nn.Conv2d) else nn.ConvTranspose2d)(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                module.stride,
                module.padding,
                bias=False,
            )  # type: ignore[arg-type]
            bare = steps.device.place(bare.to(dtype))
            x, gradient = (
                steps.device.format(torch.randn(shape, device=steps.device.torch).to(dtype))
                for shape in (input_shape, output_shape)
            )
            # Training needs no gradient of the images, so the first convolution computes none.
            self.calls.append((bare, x.requires_grad_(index > 0), gradient))

    def run_once(self) -> None:
        for module, x, gradient in self.calls:
            module(x).backward(gradient)
            module.zero_grad(set_to_none=True)
            x.grad = None

    def rate(self, times: int = 2) -> float:
        duration = seconds(self.steps.device.torch, self.run_once, times)
        return times * self.steps.shape["batch"] / duration


class Forward:
    """The forward pass alone, as in predict, with the images in memory."""

    def __init__(self, steps: Steps, batch: int) -> None:
        self.steps, self.batch = steps, batch
        self.image = steps.device.format(steps.image[:1].repeat(batch, 1, 1, 1))
        steps.model.eval()

    def run_once(self) -> None:
        with torch.inference_mode(), self.steps.device.autocast():
            F.sigmoid(self.steps.model(self.image))

    def rate(self, times: int = 2) -> float:
        return times * self.batch / seconds(self.steps.device.torch, self.run_once, times)


def work(kind: str, settings: dict[str, Any]) -> None:
    """Serve the turns of one contestant, in its process."""
    steps = Steps(settings["shape"], settings["device"])
    turns: dict[str, Callable[[], Any]] = {
        "turn": steps.rate,
        "device": lambda: steps.device.description,
    }
    if kind == "steps":
        roofline = Convolutions(steps)
        turns["roofline"] = roofline.rate
    elif kind == "forward":
        turns["turn"] = Forward(steps, settings["batch"]).rate
    serve(turns)


def available_settings() -> dict[str, dict[str, Any]]:
    """Return the device settings that this machine supports."""
    available = {}
    for name, device in SETTINGS.items():
        try:
            choose_device(DeviceConfig(**device))
        # The machine does not have this device.
        except RequestError:
            continue
        available[name] = device
    return available


def measure(rounds: int, shape: dict[str, int]) -> Section:
    """Measure the training steps of each device setting, and check the promised figures."""
    workers = {"plain": Worker("steps", {"shape": shape, "device": None})}
    workers["plain, memory kept"] = Worker("steps", {"shape": shape, "device": PLAIN_KEPT})
    workers |= {
        name: Worker("steps", {"shape": shape, "device": device})
        for name, device in available_settings().items()
    }
    contestants: dict[str, Callable[[], float]] = dict(workers)
    brainseg_workers = {name: worker for name, worker in workers.items() if "plain" not in name}
    contestants |= {
        f"{name} roofline": lambda worker=worker: worker.ask("roofline")
        for name, worker in brainseg_workers.items()
    }
    rates = measure_in_turns(contestants, rounds)
    rows, bars = [], []
    for name, worker in workers.items():
        speedup = ratio(rates[name], rates["plain"])
        share = ratio(rates[name], rates[f"{name} roofline"]) if name in brainseg_workers else None
        rows.append(
            [
                name,
                Spread.of(rates[name]).text(),
                speedup.text(2),
                share.text(2) if share else "",
                worker.ask("device"),
            ]
        )
        if name == "cpu_bf16" and share:
            figure = "speed of a step in bf16, relative to the bare convolutions"
            bars.append(Bar(figure, "at least 0.60", share.text(2), share.median >= 0.6))
            figure = "speed of a step in bf16, relative to the plain loop"
            bars.append(Bar(figure, "at least 3", speedup.text(2), speedup.median >= 3))
        if name == "cpu":
            figure = "speed of a step without bf16, relative to the plain loop"
            bars.append(Bar(figure, "at least 1.5", speedup.text(2), speedup.median >= 1.5))
        worker.close()
    title = (
        f"Training steps: depth {shape['depth']}, width {shape['width']}, "
        f"growth {shape['growth']}, batches of {shape['batch']}, "
        f"{shape['size']} x {shape['size']} pixels"
    )
    note = (
        "`plain` is a tutorial's loop: float32, NCHW, and torch's default memory settings. With "
        "these, torch returns its memory after each step, and the system clears it again. "
        "`memory kept` is the same loop without that, as in brainseg (`device.keep_freed_memory`). "
        "The roofline is the speed of the same convolutions, forward and backward, without any "
        f"other operation. Medians of {rounds} rounds, with the smallest and the largest value in "
        "brackets."
    )
    columns = ["setting", "images/s", "times plain", "of the roofline", "device"]
    return Section([Table(title, columns, rows, note)], bars)
