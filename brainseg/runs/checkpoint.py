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

from brainseg.core.errors import DataError, check
from brainseg.core.files import write_bytes
from brainseg.runs.foreign_weights import WRAPPERS, is_state_dict, unwrap_weights

# What callers rely on. A right hash proves only that the bytes are those that somebody wrote.
KINDS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "config": dict,
    "split": dict,
    "classes": list,
    "channels": list,
    "history": list,
    "optimizer": dict,
    "scaler": dict,
    "plans": list,
    "elapsed": (int, float),
    "epoch": int,
    "step": int,
    "total_steps": int,
    "threads": int,
    "best": (int, float),
    "uid": str,
    "fingerprint": str,
    "data_path": str,
    "signatures": dict,
}


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
        raise DataError(
            f"checkpoint={path}: not a brainseg checkpoint; foreign weights are read by brainseg.evaluate with model.* given"
        )
    return _verified(path, outer)


def load_weights(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as `load` does, or the weights that another program saved, which come back as {"model": state dict}.

    Those are a state dict, a dict that wraps one (`weights.WRAPPERS`), or a file of safetensors. Raises RequestError if there is no
    such file, DataError if it holds no weights.
    """
    outer = _read(path)
    if isinstance(outer, dict) and set(outer) == {"sha256", "payload"}:
        return _verified(path, outer)
    weights = unwrap_weights(outer)
    if weights is None:
        raise DataError(
            f"checkpoint={path}: holds no weights; expected a brainseg checkpoint, a state dict, or a dict that wraps one as "
            f"{', '.join(WRAPPERS)}"
        )
    return {"model": weights}


def _verified(path: str | Path, outer: dict[str, Any]) -> dict[str, Any]:
    payload = outer["payload"]
    # Dense, and as large as what is stored: an expanded tensor of one byte can stand for terabytes.
    sound = (
        isinstance(payload, torch.Tensor)
        and payload.dtype == torch.uint8
        and payload.layout == torch.strided
        and payload.ndim == 1
    )
    sound = (
        sound
        and payload.device.type == "cpu"
        and payload.numel() == payload.untyped_storage().nbytes()
    )
    content = payload.numpy().tobytes() if sound else b""
    digest = outer["sha256"]
    if not sound or not isinstance(digest, str) or hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"checkpoint={path}: damaged, its content does not have its hash; use another checkpoint of the run"
        )
    return _checked(path, _parsed(path, content))


def _checked(path: str | Path, content: Any) -> dict[str, Any]:
    """`content` if its parts are of the kinds that a run writes. Raises DataError."""
    if not isinstance(content, dict):
        raise DataError(
            f"checkpoint={path}: not what brainseg writes, a {type(content).__name__}; use another checkpoint of the run"
        )
    wrong = {
        key for key, kind in KINDS.items() if key in content and not isinstance(content[key], kind)
    }
    wrong |= {
        key
        for key in ("epoch", "step", "total_steps")
        if key not in wrong and content.get(key, 0) < 0
    }
    if not is_state_dict(content.get("model", {})):
        wrong.add("model")
    rows = content.get("history", []) if "history" not in wrong else []
    if not all(isinstance(row, dict) and {"epoch", "metrics"} <= row.keys() for row in rows):
        wrong.add("history")
    if wrong:
        raise DataError(
            f"checkpoint={path}: not what brainseg writes ({', '.join(sorted(wrong))}); use another checkpoint of the run"
        )
    return content


def _read(path: str | Path) -> Any:
    check(Path(path).is_file(), "checkpoint", path, "no such file")
    content = Path(path).read_bytes()  # an error of the disk is raised here, as what it is
    return (
        _safetensors(path, content)
        if Path(path).suffix == ".safetensors"
        else _parsed(path, content)
    )


def _safetensors(path: str | Path, content: bytes) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        check(
            False,
            "checkpoint",
            path,
            "the package safetensors, which reads it, is not installed",
            "pip install safetensors",
        )
        raise AssertionError("unreachable") from error
    try:
        return load(content)
    except SafetensorError as error:
        raise DataError(f"checkpoint={path}: damaged, or no safetensors file ({error})") from error


def _parsed(path: str | Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the unpickler trips over; all of it means: not readable
        raise DataError(f"checkpoint={path}: {_fault_of(content)}") from error


def _fault_of(content: bytes) -> str:
    """Return why torch cannot read a file, in our words: its own advise to run the code that is in it."""
    if not content.startswith((b"PK", b"\x80")):
        return "is not a file of weights; name a checkpoint, as runs/RUN/checkpoints/best.pt"
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except Exception:  # as above
        classes = []
    if classes:
        return (
            f"cannot be read as plain tensors and containers: it holds {', '.join(classes[:3])}{', ...' * (len(classes) > 3)}; "
            "save the weights alone, as torch.save(model.state_dict(), FILE)"
        )
    return "cannot be read as plain tensors and containers: it is damaged, or its code would have to be run"
