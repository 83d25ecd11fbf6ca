"""Memory, CPU and GPU use of each epoch, measured between the steps and without a thread.

MLflow shows metrics of the prefix `system/` in a tab of their own.
"""

import importlib.util
import time

import torch

from brainseg.core.processes import peak_resident_memory
from brainseg.device import Device

# Smallest number of seconds between two samples of the GPU.
SAMPLE_SECONDS = 1.0
# Memory of the caching allocator, and utilisation and power by the driver (nvidia-ml-py).
GPU_SAMPLES = ("system/gpu_utilization_percent", "system/gpu_power_watts")


class SystemMonitor:
    """Measurements of the epoch that is running.

    `system/cpu_cores` is CPU seconds per second, the mean number of busy cores. `system/memory_gb`
    is the peak memory of the process in 10^9 bytes, `system/gpu_memory_gb` that of its tensors on
    the GPU. The
    process's peak is left out until this run raises it: an earlier job of the same process may have
    needed more. Utilisation and power are those of the job's own GPU, and need nvidia-ml-py.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.has_gpu = device.torch.type == "cuda"
        # The import name of nvidia-ml-py. torch asks the driver through this package.
        self.is_sampled = self.has_gpu and importlib.util.find_spec("pynvml") is not None
        self.earlier_peak = peak_resident_memory()
        self.samples: list[tuple[float, float]] = []
        self.next_sample = 0.0
        if self.has_gpu:
            torch.cuda.reset_peak_memory_stats(device.torch)
        self._begin_epoch()

    def sample(self) -> None:
        """Sample utilisation and power of the GPU, at most once per SAMPLE_SECONDS."""
        if not self.is_sampled or time.monotonic() < self.next_sample:
            return
        from pynvml import NVMLError

        try:
            values = (
                float(torch.cuda.utilization(self.device.torch)),
                torch.cuda.power_draw(self.device.torch) / 1000,
            )
        # Parts of a GPU and some drivers do not report them. Torch raises RuntimeError without
        # the driver's library.
        except (NVMLError, RuntimeError):
            self.is_sampled = False
            return
        self.samples.append(values)
        self.next_sample = time.monotonic() + SAMPLE_SECONDS

    def finish_epoch(self) -> dict[str, float]:
        """Return the `system/...` metrics since the last call, and begin the next epoch."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        metrics = {"system/cpu_cores": (time.process_time() - self.cpu_seconds) / seconds}
        if (peak := peak_resident_memory()) > self.earlier_peak:
            metrics["system/memory_gb"] = peak / 1e9
        if self.has_gpu:
            metrics["system/gpu_memory_gb"] = (
                torch.cuda.max_memory_allocated(self.device.torch) / 1e9
            )
        if self.samples:
            means = (sum(values) / len(values) for values in zip(*self.samples, strict=True))
            metrics |= dict(zip(GPU_SAMPLES, means, strict=True))
        self._begin_epoch()
        return metrics

    def _begin_epoch(self) -> None:
        self.started, self.cpu_seconds = time.monotonic(), time.process_time()
        self.samples, self.next_sample = [], self.started
