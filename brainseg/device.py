"""Device, precision, memory format, compilation, threads: what was asked, what was got. The only reader of `config.device`."""

import ctypes
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from brainseg.config import DeviceConfig
from brainseg.core.errors import DeviceMissingError, check

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Where and how a model computes; weights stay float32, autocast lowers the precision of the convolutions."""

    torch: torch.device
    precision: str
    channels_last: bool
    compile: bool
    requested: str
    threads: int

    @property
    def resolved(self) -> str:
        """One line for the log: device, precision, format, hardware."""
        words = [
            str(self.torch),
            self.precision,
            "channels_last" if self.channels_last else "contiguous",
        ]
        return " ".join(
            [
                *words,
                *(["compiled"] if self.compile else []),
                f"({_hardware(self.torch)}, {self.threads} threads)",
            ]
        )

    @property
    def is_asynchronous(self) -> bool:
        """Whether it works off what it was given while the host goes on, so that to read one of its numbers is to wait for all."""
        return self.torch.type != "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed-precision context of one forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch.type, dtype=PRECISIONS[self.precision])

    def scaler(self) -> GradScaler:
        """Loss scaling, on for float16 only: its gradients underflow, bfloat16's do not."""
        return GradScaler(self.torch.type, enabled=self.precision == "float16")

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model here, in this memory format."""
        model = model.to(self.torch)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]

    def format(self, image: Tensor) -> Tensor:
        """An image (B, C, H, W) in this memory format."""
        return image.contiguous(memory_format=torch.channels_last) if self.channels_last else image

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """What training calls: the compiled model, or itself. Checkpoints hold the model, not the wrapper."""
        return torch.compile(model) if self.compile else model


def choose_device(
    config: DeviceConfig, threads: int | None = None, gpu: int | None = None
) -> Device:
    """Resolve `auto` by what the machine has, never by timing.

    `threads` and `gpu` stand in where the config names none: those of the run that goes on, or a launcher's share. Raises
    DeviceMissingError if the device asked for is not there, RequestError if it cannot do what is asked.
    """
    if config.threads or threads:
        torch.set_num_threads(config.threads or threads or 1)
    name = config.name if config.name != "auto" else _best_device()
    if name == "cuda" and gpu is not None:
        name = f"cuda:{gpu % max(torch.cuda.device_count(), 1)}"
    device = _existing(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(
            device
        )  # what torch allocates by itself goes there too, instead of a context on every GPU
    if device.type == "cpu":
        keep_freed_memory()
    precision = config.precision if config.precision != "auto" else _best_precision(device)
    check(
        not (device.type == "cpu" and precision == "float16"),
        "device.precision",
        precision,
        "seven times slower than float32 on a CPU",
        "use device=cpu_bf16 or device=cpu",
    )
    check(
        not (device.type == "mps" and precision == "bfloat16"),
        "device.precision",
        precision,
        "not offered on mps",
        "use device=mps",
    )
    requested = f"{config.name}/{config.precision}"
    return Device(
        device, precision, config.channels_last, config.compile, requested, torch.get_num_threads()
    )


@contextmanager
def restoring_threads() -> Iterator[None]:
    """Undo at the end what `choose_device` does to the number of threads, which is the whole process's."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(device: Device) -> int:
    """The most memory that this process has had, in bytes: of the GPU where it computes on one, else its own."""
    if device.torch.type == "cuda":
        return torch.cuda.max_memory_reserved(device.torch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; elsewhere, do nothing.

    It gives large blocks back to the kernel, which zeroes every page again at the next step. Measured on 2 cores in bf16, depth 4,
    width 32, batch 8, 256 x 256: 0.59 s a step and 230,000 page faults before, 0.32 s and 12,000 after, for a quarter more memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20)):
            mallopt(parameter, value)


def _existing(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    check(
        kind in ("cpu", "cuda", "mps") and (not index or index.isdigit()),
        "device.name",
        name,
        "must be auto, cpu, cuda, cuda:N or mps",
    )
    if kind == "cuda":
        count = torch.cuda.device_count()
        _there(
            count > 0,
            name,
            "no CUDA or ROCm device is visible to torch",
            "use device=auto or device=cpu",
        )
        _there(
            int(index or 0) < count,
            name,
            f"there are {count} GPUs, counted from 0",
            "lower the number",
        )
    if kind == "mps":
        _there(
            torch.backends.mps.is_available(),
            name,
            "this machine has no Apple GPU",
            "use device=auto or device=cpu",
        )
    return torch.device(name)


def _there(found: bool, name: str, rule: str, remedy: str) -> None:
    if not found:
        raise DeviceMissingError(f"device={name}: {rule}; {remedy}")


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    if device.type == "cpu" and {"avx512_bf16", "amx_bf16"} & _processor_flags():
        return "bfloat16"
    return "float32"  # bf16 without such instructions is emulated, and slower


def _processor_flags() -> set[str]:
    """Instruction-set flags of the first processor (Linux on x86; empty elsewhere)."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return set()
    return set(
        next(
            (line for line in information.read_text().splitlines() if line.startswith("flags")), ""
        ).split()
    )


def _hardware(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
