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
from brainseg.files import write_bytes

# What callers rely on. A right hash proves only that the bytes are those that somebody wrote.
KINDS: dict[str, type | tuple[type, ...]] = {
    "model": dict, "config": dict, "split": dict, "classes": list, "channels": list, "history": list, "optimizer": dict, "scaler": dict,
    "epoch": int, "step": int, "total_steps": int, "threads": int, "best": (int, float), "uid": str, "fingerprint": str,
}  # fmt: skip


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, atomically and durably."""
    inner = io.BytesIO()
    torch.save(content, inner)
    digest = hashlib.sha256(inner.getbuffer()).hexdigest()
    payload = torch.from_numpy(np.frombuffer(inner.getvalue(), np.uint8).copy())
    outer = io.BytesIO()  # not into the file: torch reports a full disk as a broken archive
    torch.save({"sha256": digest, "payload": payload}, outer)
    write_bytes(path, outer.getvalue())


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
    if not weights or not _is_state_dict(weights):
        raise DataError(f"checkpoint={path}: holds no weights; expected a brainseg checkpoint, a dict with state_dict, or a state dict")
    return {"model": weights}


def _verified(path: str | Path, outer: dict[str, Any]) -> dict[str, Any]:
    payload = outer["payload"]
    # Dense, and as large as what is stored: an expanded tensor of one byte can stand for terabytes.
    sound = isinstance(payload, torch.Tensor) and payload.dtype == torch.uint8 and payload.layout == torch.strided and payload.ndim == 1
    sound = sound and payload.device.type == "cpu" and payload.numel() == payload.untyped_storage().nbytes()
    content = payload.numpy().tobytes() if sound else b""
    digest = outer["sha256"]
    if not sound or not isinstance(digest, str) or hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"checkpoint={path}: damaged, its content does not have its hash; use another checkpoint of the run")
    return _checked(path, _parsed(path, content))


def _checked(path: str | Path, content: Any) -> dict[str, Any]:
    """`content` if its parts are of the kinds that a run writes. Raises DataError."""
    if not isinstance(content, dict):
        raise DataError(f"checkpoint={path}: not what brainseg writes, a {type(content).__name__}; use another checkpoint of the run")
    wrong = {key for key, kind in KINDS.items() if key in content and not isinstance(content[key], kind)}
    wrong |= {key for key in ("epoch", "step", "total_steps") if key not in wrong and content.get(key, 0) < 0}
    if not _is_state_dict(content.get("model", {})):
        wrong.add("model")
    rows = content.get("history", []) if "history" not in wrong else []
    if not all(isinstance(row, dict) and {"epoch", "metrics"} <= row.keys() for row in rows):
        wrong.add("history")
    if wrong:
        raise DataError(f"checkpoint={path}: not what brainseg writes ({', '.join(sorted(wrong))}); use another checkpoint of the run")
    return content


def _is_state_dict(weights: Any) -> bool:
    return isinstance(weights, dict) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in weights.items())


def _read(path: str | Path) -> Any:
    check(Path(path).is_file(), "checkpoint", path, "no such file")
    return _parsed(path, Path(path).read_bytes())  # an error of the disk is raised here, as what it is


def _parsed(path: str | Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes raise whatever the unpickler trips over, and torch's text advises to load without its protection.
        rule = "cannot be read as plain tensors and containers"
        raise DataError(f"checkpoint={path}: {rule}; name a checkpoint, as runs/RUN/checkpoints/best.pt") from error
