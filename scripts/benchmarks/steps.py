"""Training steps: images a second of each device setting, beside the plain loop and beside the bare convolutions (the roofline)."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Bar, Section, Spread, Table, Worker, interleaved, ratio, serve
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
PLAIN_KEPT = {
    "name": "cpu",
    "precision": "float32",
    "channels_last": False,
}  # the plain loop, given our memory settings
REFERENCE = {"depth": 4, "width": 32, "growth": 1, "size": 256, "channels": 3, "batch": 8}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(device: torch.device, work: Callable[[], Any], times: int) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return time.perf_counter() - started


class Steps:
    """Training steps on one batch of random images. `plain` is what a tutorial's loop does: float32, NCHW, torch's own memory."""

    def __init__(self, shape: dict[str, int], device: dict[str, Any] | None) -> None:
        torch.manual_seed(0)
        self.shape = shape
        plain = Device(
            torch.device("cpu"), "float32", False, False, "plain", torch.get_num_threads()
        )
        self.device = choose_device(DeviceConfig(**device)) if device else plain
        model = UNetConfig(depth=shape["depth"], width=shape["width"], growth=shape["growth"])
        self.model = self.device.place(
            networks.build_network(model, shape["channels"], 1, (shape["size"], shape["size"]))
        )
        self.loss = losses.build_loss(LossConfig("dice"))
        self.optimizer = optimizers.build_optimizer(
            OptimizerConfig("adam", lr=1e-4), self.model.parameters()
        )
        picture = (shape["batch"], shape["channels"], shape["size"], shape["size"])
        self.image = self.device.format(torch.rand(*picture, device=self.device.torch))
        self.mask = (torch.rand(picture[0], 1, *picture[2:], device=self.device.torch) > 0.9).to(
            torch.uint8
        )

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.device.autocast():
            logits = self.model(self.image)
        self.loss(logits.float(), self.mask).backward()
        self.optimizer.step()

    def rate(self, times: int = 2) -> float:
        return times * self.shape["batch"] / seconds(self.device.torch, self.step, times)


class Convolutions:
    """The same convolutions forward and backward, bare, in the setting's precision and memory format: no norm, no ReLU, no loss."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            steps.device.precision
        ]

        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shapes.append((module, inputs[0].shape, output.shape))

        shapes: list[tuple[nn.Module, torch.Size, torch.Size]] = []
        of = [
            module
            for module in steps.model.modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        ]
        handles = [module.register_forward_hook(seen, prepend=True) for module in of]
        with torch.no_grad():
            steps.model(steps.image)
        for handle in handles:
            handle.remove()
        for index, (module, given, made) in enumerate(shapes):
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
                for shape in (given, made)
            )
            self.calls.append(
                (bare, x.requires_grad_(index > 0), gradient)
            )  # nobody asks for the gradient of the images

    def once(self) -> None:
        for module, x, gradient in self.calls:
            module(x).backward(gradient)
            module.zero_grad(set_to_none=True)
            x.grad = None

    def rate(self, times: int = 2) -> float:
        return (
            times * self.steps.shape["batch"] / seconds(self.steps.device.torch, self.once, times)
        )


class Forward:
    """The forward pass alone, as predict runs it, with the images in memory."""

    def __init__(self, steps: Steps, batch: int) -> None:
        self.steps, self.batch = steps, batch
        self.image = steps.device.format(steps.image[:1].repeat(batch, 1, 1, 1))
        steps.model.eval()

    def once(self) -> None:
        with torch.inference_mode(), self.steps.device.autocast():
            F.sigmoid(self.steps.model(self.image))

    def rate(self, times: int = 2) -> float:
        return times * self.batch / seconds(self.steps.device.torch, self.once, times)


def work(kind: str, settings: dict[str, Any]) -> None:
    """The process of one contestant."""
    steps = Steps(settings["shape"], settings["device"])
    turns: dict[str, Callable[[], Any]] = {"turn": steps.rate, "got": lambda: steps.device.resolved}
    if kind == "steps":
        roofline = Convolutions(steps)
        turns["roofline"] = roofline.rate
    else:
        turns["turn"] = Forward(steps, settings["batch"]).rate
    serve(turns)


def here() -> dict[str, dict[str, Any]]:
    """The settings that this machine has."""
    found = {}
    for name, device in SETTINGS.items():
        try:
            choose_device(DeviceConfig(**device))
        except RequestError:
            continue
        found[name] = device
    return found


def measure(rounds: int, shape: dict[str, int]) -> Section:
    """Steps by device setting: the table, and the bars of the step."""
    workers = {"plain": Worker("steps", {"shape": shape, "device": None})}
    workers["plain, memory kept"] = Worker("steps", {"shape": shape, "device": PLAIN_KEPT})
    workers |= {
        name: Worker("steps", {"shape": shape, "device": device}) for name, device in here().items()
    }
    contestants: dict[str, Callable[[], float]] = dict(workers)
    ours = {name: worker for name, worker in workers.items() if "plain" not in name}
    contestants |= {
        f"{name} roofline": lambda worker=worker: worker.ask("roofline")
        for name, worker in ours.items()
    }
    rates = interleaved(contestants, rounds)
    rows, bars = [], []
    for name, worker in workers.items():
        faster = ratio(rates[name], rates["plain"])
        share = ratio(rates[name], rates[f"{name} roofline"]) if name in ours else None
        rows.append(
            [
                name,
                Spread.of(rates[name]).text(),
                faster.text(2),
                share.text(2) if share else "",
                worker.ask("got"),
            ]
        )
        if name == "cpu_bf16" and share:
            bars.append(
                Bar(
                    "a step in bf16, of the bare convolutions",
                    "at least 0.60",
                    share.text(2),
                    share.median >= 0.6,
                )
            )
            bars.append(
                Bar(
                    "a step in bf16, times the plain loop",
                    "at least 3",
                    faster.text(2),
                    faster.median >= 3,
                )
            )
        if name == "cpu":
            bars.append(
                Bar(
                    "a step without bf16, times the plain loop",
                    "at least 1.5",
                    faster.text(2),
                    faster.median >= 1.5,
                )
            )
        worker.close()
    title = "Training steps: depth {depth}, width {width}, growth {growth}, batches of {batch}, {size} x {size} pixels".format(
        **shape
    )
    note = (
        "`plain` is a tutorial's loop: float32, NCHW, torch as it comes, which gives memory back after each step and has it "
        "zeroed again; `memory kept` is that loop where this is switched off, as here (`device.keep_freed_memory`). The roofline is "
        "what the same convolutions reach, forward and backward, without anything between. "
        f"Medians of {rounds} rounds, least and most in brackets."
    )
    return Section(
        [
            Table(
                title, ["setting", "images/s", "times plain", "of the roofline", "got"], rows, note
            )
        ],
        bars,
    )
