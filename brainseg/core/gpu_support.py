"""Reasons why the installed torch cannot compute on an NVIDIA GPU of this machine."""

import logging
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import torch

# The driver of Linux has a folder here for each GPU.
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
# Kernels are compiled for a compute capability (sm_86), or as code that newer GPUs translate
# (compute_86). A suffix restricts them to this capability (a) or to its family (f).
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
# The last build of torch for GPUs before Turing is the one for CUDA 12.6.
OLDER_BUILD = "install the build for CUDA 12.6 with `make setup TORCH=cu126`"

log = logging.getLogger("brainseg")


def find_kernel_problem(gpu: int) -> str:
    """Return why torch has no kernels for a GPU and the remedy, or an empty string if it has.

    The first kernel would fail otherwise.
    """
    architectures = [
        (kind, (int(major), int(minor)), suffix)
        for name in torch.cuda.get_arch_list()
        for kind, major, minor, suffix in ARCHITECTURE.findall(name)
    ]
    # ROCm lists other names.
    if not architectures:
        return ""
    capability = torch.cuda.get_device_capability(gpu)
    if any(_supports(*architecture, capability) for architecture in architectures):
        return ""
    is_old = capability < min(architecture for _, architecture, _ in architectures)
    remedy = OLDER_BUILD if is_old else "install a newer torch"
    return (
        f"torch {torch.__version__} has no kernels for the {torch.cuda.get_device_name(gpu)} "
        f"(compute capability {capability[0]}.{capability[1]}); {remedy}"
    )


def find_driver_problem() -> str:
    """Return why torch sees no GPU although there is an NVIDIA driver, or an empty string.

    Call it if torch sees no GPU.
    """
    # A user may hide all GPUs on purpose.
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not _has_nvidia_gpu():
        return ""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA; "
            "install one with `make setup TORCH=cu130`"
        )
    return (
        f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use the NVIDIA driver, "
        f"which may be too old; update the driver, or {OLDER_BUILD}"
    )


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time that this process calls the function with it."""
    log.warning("%s", message)


def _supports(
    kind: str, architecture: tuple[int, int], suffix: str, capability: tuple[int, int]
) -> bool:
    """Return True if kernels of an architecture run on a GPU of this compute capability."""
    if suffix == "a":
        return architecture == capability
    is_same_family = architecture[0] == capability[0]
    return architecture <= capability and (is_same_family or (kind, suffix) == ("compute", ""))


def _has_nvidia_gpu() -> bool:
    if sys.platform == "win32":
        return shutil.which("nvidia-smi") is not None
    return DRIVER_GPUS.is_dir() and any(DRIVER_GPUS.iterdir())
