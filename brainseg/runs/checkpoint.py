"""Checkpoints: files that contain their own hash and are read without executing code.

    {"sha256": str, "payload": uint8 tensor}     the payload is the inner file's bytes

The hash is needed because a flipped bit in a bare `.pt` file loads silently. The inner file
contains only containers, numbers, strings and tensors, so that `weights_only=True` can read it.
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

# The types that callers rely on. A matching hash only proves that the file is undamaged. Anybody
# can write a checkpoint with other content.
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
    # torch.save goes to memory, because it reports a full disk as a broken archive.
    outer = io.BytesIO()
    torch.save({"sha256": digest, "payload": payload}, outer)
    write_bytes(path, outer.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint written by `save` to the CPU.

    Raises RequestError if the file does not exist, DataError if it is damaged.
    """
    outer = _read(path)
    if not isinstance(outer, dict) or set(outer) != {"sha256", "payload"}:
        raise DataError(
            f"checkpoint={path}: not a brainseg checkpoint; "
            "to use weights of another program, run brainseg.evaluate with the model.* settings"
        )
    return _verify_payload(path, outer)


def load_weights(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as `load` does, or a file of weights that another program saved.

    Such weights are a state dict, a dict that wraps a state dict (`foreign_weights.WRAPPERS`), or a
    safetensors file. They are returned as {"model": state dict}. Raises RequestError if the file
    does not exist, DataError if it contains no weights.
    """
    outer = _read(path)
    if isinstance(outer, dict) and set(outer) == {"sha256", "payload"}:
        return _verify_payload(path, outer)
    weights = unwrap_weights(outer)
    if weights is None:
        raise DataError(
            f"checkpoint={path}: contains no weights; give a brainseg checkpoint, a state dict, "
            f"or a dict that contains a state dict as {', '.join(WRAPPERS)}"
        )
    return {"model": weights}


def _verify_payload(path: str | Path, outer: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the payload. Raises DataError if its hash or its types do not match."""
    payload = outer["payload"]
    # The payload must be dense, and as large as its storage: an expanded tensor of one byte can
    # stand for terabytes.
    is_plain = (
        isinstance(payload, torch.Tensor)
        and payload.dtype == torch.uint8
        and payload.layout == torch.strided
        and payload.ndim == 1
    )
    is_plain = (
        is_plain
        and payload.device.type == "cpu"
        and payload.numel() == payload.untyped_storage().nbytes()
    )
    content = payload.numpy().tobytes() if is_plain else b""
    digest = outer["sha256"]
    if not is_plain or not isinstance(digest, str) or hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"checkpoint={path}: damaged, its content does not match its hash; "
            "use another checkpoint of the run"
        )
    return _check_content(path, _unpickle(path, content))


def _check_content(path: str | Path, content: Any) -> dict[str, Any]:
    """Return `content` if its parts have the types that a run writes. Raises DataError."""
    if not isinstance(content, dict):
        raise DataError(
            f"checkpoint={path}: contains a {type(content).__name__}, not what brainseg writes; "
            "use another checkpoint of the run"
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
            f"checkpoint={path}: not what brainseg writes ({', '.join(sorted(wrong))}); "
            "use another checkpoint of the run"
        )
    return content


def _read(path: str | Path) -> Any:
    check(Path(path).is_file(), "checkpoint", path, "no such file")
    # The file is read here and not by torch, so that an error of the disk is raised as an OSError.
    content = Path(path).read_bytes()
    return (
        _read_safetensors(path, content)
        if Path(path).suffix == ".safetensors"
        else _unpickle(path, content)
    )


def _read_safetensors(path: str | Path, content: bytes) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        check(
            False,
            "checkpoint",
            path,
            "the package safetensors, which reads this file, is not installed",
            "pip install safetensors",
        )
        raise AssertionError("unreachable") from error
    try:
        return load(content)
    except SafetensorError as error:
        raise DataError(f"checkpoint={path}: damaged, or no safetensors file ({error})") from error


def _unpickle(path: str | Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes make the unpickler raise errors of any type. All mean an unreadable file.
        raise DataError(f"checkpoint={path}: {_explain_unreadable(content)}") from error


def _explain_unreadable(content: bytes) -> str:
    """Return why torch cannot read a file.

    The message replaces torch's own, which advises to run the code in the file.
    """
    if not content.startswith((b"PK", b"\x80")):
        return "is not a file of weights; name a checkpoint such as runs/RUN/checkpoints/best.pt"
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    except Exception:
        # Damaged bytes raise errors of any type here, too.
        classes = []
    if classes:
        names = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
        return (
            f"cannot be read as plain tensors and containers: it contains {names}; "
            "save only the weights, with torch.save(model.state_dict(), FILE)"
        )
    return (
        "cannot be read as plain tensors and containers: "
        "the file is damaged, or can only be read by running code that it contains"
    )
