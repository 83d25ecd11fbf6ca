"""Checkpoints: one file that verifies itself, read without executing anything.

    {"sha256": str, "payload": uint8 tensor}     the payload is the inner file's bytes

The hash is needed because a flipped bit in a bare `.pt` file loads silently. Inside are only containers, numbers, strings and
tensors, so `weights_only=True` reads them.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainseg.errors import DataError, check
from brainseg.files import writing


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, atomically and durably."""
    inner = io.BytesIO()
    torch.save(content, inner)
    digest = hashlib.sha256(inner.getbuffer()).hexdigest()
    payload = torch.from_numpy(np.frombuffer(inner.getvalue(), np.uint8).copy())
    with writing(path) as temporary:
        torch.save({"sha256": digest, "payload": payload}, temporary)


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint made by `save`, to the CPU. Raises RequestError if there is none, DataError if it is damaged."""
    outer = _read(path)
    if not isinstance(outer, dict) or set(outer) != {"sha256", "payload"}:
        raise DataError(f"checkpoint={path}: not a brainseg checkpoint; foreign weights are read by brainseg.evaluate with model.* given")
    return _verified(path, outer)


def load_weights(path: str | Path) -> dict[str, Any]:
    """As `load`, but also takes foreign weights: {"state_dict": ...} or a bare state dict come back as {"model": state dict}."""
    outer = _read(path)
    if isinstance(outer, dict) and set(outer) == {"sha256", "payload"}:
        return _verified(path, outer)
    weights = outer.get("state_dict", outer) if isinstance(outer, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise DataError(f"checkpoint={path}: holds no weights; expected a brainseg checkpoint, a dict with state_dict, or a state dict")
    return {"model": weights}


def _verified(path: str | Path, outer: dict[str, Any]) -> dict[str, Any]:
    payload = outer["payload"]
    sound = isinstance(payload, torch.Tensor) and payload.dtype == torch.uint8 and payload.ndim == 1
    content = payload.numpy().tobytes() if sound else b""
    if not sound or hashlib.sha256(content).hexdigest() != outer["sha256"]:
        raise DataError(f"checkpoint={path}: damaged, its content does not have its hash; use another checkpoint of the run")
    return _parsed(path, content)


def _read(path: str | Path) -> Any:
    check(Path(path).is_file(), "checkpoint", path, "no such file")
    return _parsed(path, Path(path).read_bytes())  # an error of the disk is raised here, as what it is


def _parsed(path: str | Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the unpickler trips over; all of it means: not readable
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"checkpoint={path}: cannot be read as plain tensors and containers ({reason})") from error
