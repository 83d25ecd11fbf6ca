"""Devices: auto decides by what is there, what is not there is refused, freed memory is kept."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brainseg import device as device_module
from brainseg.config import DeviceConfig
from brainseg.core import gpu_support
from brainseg.core.errors import DeviceMissingError, RequestError
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
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "compute_90"])
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
    monkeypatch.setattr(gpu_support, "DRIVER_GPUS", Path("absent"))
    with pytest.raises(RequestError, match="no CUDA or ROCm device"):
        choose_device(DeviceConfig("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    with pytest.raises(RequestError, match="there are 2 GPUs"):
        choose_device(DeviceConfig("cuda:2"))


@pytest.mark.parametrize(
    ("architectures", "capability", "is_supported"),
    [
        # The CUDA 13 build of torch, with a V100, a T4, an RTX 3090, an RTX 4090, and a later GPU.
        ("sm_75 sm_80 sm_86 sm_90 sm_120 compute_120", (7, 0), False),
        ("sm_75 sm_80 sm_86 sm_90 sm_120 compute_120", (7, 5), True),
        ("sm_75 sm_80 sm_86 sm_90 sm_120 compute_120", (8, 6), True),
        ("sm_75 sm_80 sm_86 sm_90 sm_120 compute_120", (8, 9), True),
        ("sm_75 sm_80 sm_86 sm_90 sm_120 compute_120", (13, 0), True),
        # Without code to translate, a newer generation has no kernels.
        ("sm_75 sm_80", (9, 0), False),
        # a: this capability alone; f: its family; ROCm has other names.
        ("sm_90a", (9, 0), True),
        ("sm_100a compute_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("compute_100f", (12, 0), False),
        ("gfx90a gfx942", (9, 0), True),
    ],
)
def test_a_gpu_without_kernels_is_refused_before_the_first_one(
    monkeypatch: pytest.MonkeyPatch,
    architectures: str,
    capability: tuple[int, int],
    is_supported: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", architectures.split)
    if is_supported:
        assert choose_device(DeviceConfig("cuda")).torch.type == "cuda"
        return
    with pytest.raises(DeviceMissingError) as refusal:
        choose_device(DeviceConfig("cuda"))
    is_old = capability == (7, 0)
    remedy = (
        "install the build for CUDA 12.6 with `make setup TORCH=cu126`"
        if is_old
        else "install a newer torch"
    )
    assert str(refusal.value) == (
        f"device=cuda: torch {torch.__version__} has no kernels for the Tesla V100 (compute "
        f"capability {capability[0]}.{capability[1]}); {remedy}; or use device=cpu"
    )


def test_auto_warns_once_about_a_gpu_without_kernels_and_takes_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu_support.warn_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080 Ti")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "compute_120"])
    assert [choose_device(DeviceConfig()).torch.type for _ in range(2)] == ["cpu", "cpu"]
    (warning,) = caplog.messages
    assert warning.startswith("device=auto uses no NVIDIA GPU: ")
    assert warning.endswith("`make setup TORCH=cu126`, or set device=cpu")


@pytest.mark.parametrize(
    ("cuda", "words"),
    [
        ("13.0", "for CUDA 13.0 cannot use the NVIDIA driver, which may be too old"),
        (None, "is a build without CUDA; install one with `make setup TORCH=cu130`"),
    ],
)
def test_a_driver_that_torch_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    cuda: str | None,
    words: str,
) -> None:
    gpu_support.warn_once.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_support, "DRIVER_GPUS", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choose_device(DeviceConfig())
    assert not caplog.messages, "the driver has no GPU"
    (tmp_path / "0000:01:00.0").mkdir()
    assert [choose_device(DeviceConfig()).torch.type for _ in range(2)] == ["cpu", "cpu"]
    choose_device(DeviceConfig("cpu"))
    (warning,) = caplog.messages
    assert words in warning
    with pytest.raises(DeviceMissingError, match=f"device=cuda: .*{words}.*; or use device=cpu"):
        choose_device(DeviceConfig("cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceMissingError, match="no CUDA or ROCm device"):
        choose_device(DeviceConfig("cuda"))


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
