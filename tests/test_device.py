"""Devices: auto decides by what is there, what is not there is refused, freed memory is kept."""

import subprocess
import sys

import pytest
import torch

from brainseg import device as device_module
from brainseg.config import DeviceConfig
from brainseg.core.errors import RequestError
from brainseg.device import choose_device


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx512_bf16"}, "bfloat16"), ({"amx_bf16"}, "bfloat16"), ({"avx512f"}, "float32")],
)
def test_auto_decides_by_the_processors_flags(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    monkeypatch.setattr(device_module, "_processor_flags", lambda: flags)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device = choose_device(DeviceConfig())
    assert (device.torch.type, device.precision, device.requested) == (
        "cpu",
        precision,
        "auto/auto",
    )
    assert precision in device.description


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bfloat16"), ((7, 5), "float16")])
def test_auto_takes_a_gpu_in_the_precision_it_has(
    monkeypatch: pytest.MonkeyPatch, capability: tuple, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = choose_device(DeviceConfig())
    assert (device.torch.type, device.precision) == ("cuda", precision)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DeviceConfig("tpu"), "must be auto, cpu, cuda, cuda:N or mps"),
        (DeviceConfig("cuda:x"), "must be auto"),
        (DeviceConfig("cpu", "float16"), "seven times slower"),
    ],
)
def test_what_cannot_be_is_refused(config: DeviceConfig, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        choose_device(config)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RequestError, match="no CUDA or ROCm device"):
        choose_device(DeviceConfig("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RequestError, match="there are 2 GPUs"):
        choose_device(DeviceConfig("cuda:2"))


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    device = choose_device(DeviceConfig("cpu", "bfloat16"))
    model = device.place(torch.nn.Conv2d(3, 4, 3))
    with device.autocast():
        out = model(device.format(torch.rand(1, 3, 8, 8)))
    assert out.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not hasattr(device_module.ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    """In a process of its own: what other tests left in the heap decides where a block lands."""
    code = """
import resource, torch
from brainseg.config import DeviceConfig
from brainseg.device import choose_device
choose_device(DeviceConfig("cpu"))
for _ in range(8):  # the heap grows to its size in the first few
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB: 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
