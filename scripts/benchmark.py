"""Images a second of training steps by device setting, against the plain float32 NCHW loop, in one interleaved run.

    python scripts/benchmark.py [--width 32] [--depth 4] [--growth 1] [--size 256] [--channels 3] [--batch 8] [--rounds 5] [--steps 2]

Settings take turns, so that a machine that slows down slows all of them; the ratio is taken round by round, and its median printed.
"""

import argparse
import statistics
import time

import torch

from brainseg import build
from brainseg.config import DeviceConfig, LossConfig, OptimizerConfig, UNetConfig
from brainseg.device import Device, choose
from brainseg.errors import RequestError

SETTINGS = {
    "plain": DeviceConfig("cpu", "float32", channels_last=False),
    "cpu": DeviceConfig("cpu", "float32"),
    "cpu_bf16": DeviceConfig("cpu", "bfloat16"),
    "cuda": DeviceConfig("cuda", "float32"),
    "cuda_bf16": DeviceConfig("cuda", "bfloat16"),
    "mps": DeviceConfig("mps", "float32"),
}


class Steps:
    """Training steps of one setting on random images."""

    def __init__(self, device: Device, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = device
        model = UNetConfig(depth=options.depth, width=options.width, growth=options.growth)
        self.model = device.place(build.model(model, options.channels, 1, (options.size, options.size)))
        self.loss = build.loss(LossConfig("dice"))
        self.optimizer = build.optimizer(OptimizerConfig("adam", lr=1e-4), self.model.parameters())
        self.image = device.format(torch.rand(options.batch, options.channels, options.size, options.size, device=device.torch))
        self.mask = (torch.rand(options.batch, 1, options.size, options.size, device=device.torch) > 0.9).to(torch.uint8)

    def seconds(self, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            with self.device.autocast():
                logits = self.model(self.image)
            loss = self.loss(logits, self.mask)
            loss.backward()
            self.optimizer.step()
            loss.item()  # waits for the device
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"depth": 4, "width": 32, "growth": 1, "size": 256, "channels": 3, "batch": 8, "rounds": 5, "steps": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    runners = {}
    for name, config in SETTINGS.items():
        try:
            runners[name] = Steps(choose(config), options)
        except RequestError as error:
            print(f"{name:10s} not here: {error}")
    for runner in runners.values():
        runner.seconds(1)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name, runner in runners.items():
            rates[name].append(options.steps * options.batch / runner.seconds(options.steps))
    print(f"{'device':10s} {'images/s':>9s} {'min':>7s} {'max':>7s} {'x plain':>8s}   {options.rounds} rounds of {options.steps} steps")
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["plain"], strict=True))
        print(f"{name:10s} {statistics.median(found):9.1f} {min(found):7.1f} {max(found):7.1f} {ratio:8.2f}   {runners[name].device.got}")


if __name__ == "__main__":
    main()
