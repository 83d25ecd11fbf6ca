"""The device on which a model computes, with its precision, memory format and number of threads.

This module alone reads `config.device`.
"""

import ctypes
import platform
import sys
import warnings
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
from brainseg.core.gpu_support import find_driver_problem, find_kernel_problem, warn_once
from brainseg.core.processes import peak_resident_memory

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Device, precision and memory format of a model's computation.

    Weights stay float32. Autocast lowers the precision of the convolutions.
    """

    torch: torch.device
    precision: str
    channels_last: bool
    compile: bool
    requested: str
    threads: int

    @property
    def description(self) -> str:
        """Return device, precision, memory format and hardware in one line for the log."""
        words = [
            str(self.torch),
            self.precision,
            "channels_last" if self.channels_last else "contiguous",
            *(["compiled"] if self.compile else []),
            f"({_hardware_name(self.torch)}, {self.threads} threads)",
        ]
        return " ".join(words)

    @property
    def is_asynchronous(self) -> bool:
        """Return True if the device runs asynchronously.

        Reading a tensor's value then waits for all queued work.
        """
        return self.torch.type != "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the mixed-precision context of one forward pass."""
        if self.precision == "float32":
            return nullcontext()
        # A cache of converted weights would outlive the recording of a CUDA graph. It saves only
        # the second conversion for the flips of test-time augmentation.
        return torch.autocast(
            self.torch.type,
            dtype=PRECISIONS[self.precision],
            cache_enabled=self.torch.type != "cuda",
        )

    def scaler(self) -> GradScaler:
        """Return the loss scaler. It is enabled for float16 only.

        Gradients underflow in float16, but not in bfloat16.
        """
        return GradScaler(self.torch.type, enabled=self.precision == "float16")

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to this device, in this memory format."""
        model = model.to(self.torch)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def format(self, image: Tensor) -> Tensor:
        """Return an image (B, C, H, W) in this memory format."""
        return image.contiguous(memory_format=torch.channels_last) if self.channels_last else image

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the callable for training: the compiled model, or the model itself.

        Checkpoints contain the model, not the compiled wrapper.
        """
        return torch.compile(model) if self.compile else model


def choose_device(
    config: DeviceConfig, threads: int | None = None, gpu: int | None = None
) -> Device:
    """Return the device for a config. `auto` is resolved by the hardware, never by timing.

    `auto` warns once if the machine has an NVIDIA GPU that the installed torch cannot use.
    `threads` and `gpu` apply if the config names none. They come from the run that is resumed, or
    from a launcher that shares out the machine. Raises DeviceMissingError if the machine lacks the
    device, and RequestError if the device does not support the precision.
    """
    if config.threads or threads:
        torch.set_num_threads(config.threads or threads or 1)
    name = config.name if config.name != "auto" else _best_device()
    if name == "cuda" and gpu is not None:
        # Without any GPU, `_find_device` must report the missing device instead of a division by 0.
        name = f"cuda:{gpu % max(torch.cuda.device_count(), 1)}"
    device = _find_device(name)
    if device.type == "cuda" and device.index is not None:
        # torch's own allocations then go to this GPU, too, instead of a context on every GPU.
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    precision = config.precision if config.precision != "auto" else _best_precision(device)
    check(
        not (device.type == "cpu" and precision == "float16"),
        "device.precision",
        precision,
        "float16 is seven times slower than float32 on a CPU",
        "use device=cpu_bf16 or device=cpu",
    )
    check(
        not (device.type == "mps" and precision == "bfloat16"),
        "device.precision",
        precision,
        "bfloat16 is not offered on mps",
        "use device=mps",
    )
    requested = f"{config.name}/{config.precision}"
    return Device(
        device, precision, config.channels_last, config.compile, requested, torch.get_num_threads()
    )


@contextmanager
def restoring_threads() -> Iterator[None]:
    """Restore the number of threads at the end of the block.

    `choose_device` sets it for the whole process.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def peak_memory(device: Device) -> int:
    """Return the peak memory of this process in bytes, on the GPU if `device` is one."""
    if device.torch.type == "cuda":
        return torch.cuda.max_memory_reserved(device.torch)
    return peak_resident_memory()


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next tensors. Do nothing elsewhere.

    By default glibc returns large blocks to the kernel, which zeroes every page again at the next
    step. Measured on 2 cores in bf16, depth 4, width 32, batch 8, 256 x 256: 0.59 s a step and
    230,000 page faults before, 0.32 s and 12,000 after, for a quarter more memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20)):
            mallopt(parameter, value)


def _find_device(name: str) -> torch.device:
    """Return the device of a name. Raises RequestError, or DeviceMissingError if it is missing."""
    kind, _, index = name.partition(":")
    check(
        kind in ("cpu", "cuda", "mps") and (not index or index.isdigit()),
        "device.name",
        name,
        "must be auto, cpu, cuda, cuda:N or mps",
    )
    if kind == "cuda":
        count = torch.cuda.device_count()
        problem = "" if count else find_driver_problem()
        _require_device(
            count > 0,
            name,
            problem or "no CUDA or ROCm device is visible to torch",
            "or use device=cpu" if problem else "use device=auto or device=cpu",
        )
        _require_device(
            int(index or 0) < count,
            name,
            f"there are {count} GPUs, numbered from 0",
            "choose a lower number",
        )
        problem = find_kernel_problem(int(index or 0))
        _require_device(not problem, name, problem, "or use device=cpu")
    if kind == "mps":
        _require_device(
            torch.backends.mps.is_available(),
            name,
            "this machine has no Apple GPU",
            "use device=auto or device=cpu",
        )
    return torch.device(name)


def _require_device(is_available: bool, name: str, rule: str, remedy: str) -> None:
    """Raise DeviceMissingError unless the device is available."""
    if not is_available:
        raise DeviceMissingError(f"device={name}: {rule}; {remedy}")


def _best_device() -> str:
    with warnings.catch_warnings():
        # torch's own warning about an old driver does not name a remedy within this project.
        warnings.simplefilter("ignore")
        is_available = torch.cuda.is_available()
    problem = find_kernel_problem(0) if is_available else find_driver_problem()
    if problem:
        warn_once(f"device=auto uses no NVIDIA GPU: {problem}, or set device=cpu")
    elif is_available:
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        # GPUs compute in bfloat16 from compute capability 8.0 (Ampere) on.
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    if device.type == "cpu" and {"avx512_bf16", "amx_bf16"} & _processor_flags():
        return "bfloat16"
    # A CPU without such instructions emulates bf16, which is slower than float32.
    return "float32"


def _processor_flags() -> set[str]:
    """Return the first processor's instruction-set flags, which only Linux on x86 lists."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return set()
    return set(
        next(
            (line for line in information.read_text().splitlines() if line.startswith("flags")), ""
        ).split()
    )


def _hardware_name(device: torch.device) -> str:
    # Linux often leaves `processor` empty. `machine` is then the architecture, such as x86_64.
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
