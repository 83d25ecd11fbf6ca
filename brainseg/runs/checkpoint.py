"""Checkpoints: dictionaries that plain `torch.load(path, weights_only=True)` reads.

    {"format": "brainseg 2", "sha256": str, "model": state dict, "config": dict, ...}

A flipped bit in a `.pt` file loads silently: torch does not compare the CRC-32 that it stores with
each record, and a changed offset in the archive's directory makes it read other bytes. So the hash
is that of the content as it is loaded. The content is only containers, numbers, strings and
tensors. The first format, a hash and the bytes of an inner file, is still read.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

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
    "initial": dict,
    "in_channels": int,
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
    "about": dict,
}
FORMAT = "brainseg 2"
DAMAGED = "damaged, its content does not match its hash; use another checkpoint of the run"


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`, atomically and durably."""
    # torch.save goes to memory, because it reports a full disk as a broken archive.
    archive = io.BytesIO()
    torch.save({"format": FORMAT, "sha256": hash_content(content), **content}, archive)
    write_bytes(path, archive.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint written by `save` to the CPU.

    Raises RequestError if the file does not exist, DataError if it is damaged.
    """
    archive = _read(path)
    content = _content_of(path, archive)
    if content is None:
        raise DataError(
            f"checkpoint={path}: not a brainseg checkpoint; "
            "to use weights of another program, run brainseg.evaluate with the model.* settings"
        )
    return content


def load_weights(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as `load` does, or a file of weights that another program saved.

    Such weights are a state dict, a dict that wraps a state dict (`foreign_weights.WRAPPERS`), or a
    safetensors file. They are returned as {"model": state dict}. Raises RequestError if the file
    does not exist, DataError if it contains no weights.
    """
    archive = _read(path)
    content = _content_of(path, archive)
    if content is not None:
        return content
    weights = unwrap_weights(archive)
    if weights is None:
        raise DataError(
            f"checkpoint={path}: contains no weights; give a brainseg checkpoint, a state dict, "
            f"or a dict that contains a state dict as {', '.join(WRAPPERS)}"
        )
    return {"model": weights}


def _content_of(path: str | Path, archive: Any) -> dict[str, Any] | None:
    """Return the content of a checkpoint, or None for a file of another program.

    Raises DataError if the file is damaged or not what a run writes.
    """
    if not isinstance(archive, dict):
        return None
    if set(archive) == {"sha256", "payload"}:
        return _verify_payload(path, archive)
    if archive.get("format") != FORMAT:
        return None
    content = {key: value for key, value in archive.items() if key not in ("format", "sha256")}
    try:
        digest = hash_content(content)
    except ValueError as error:
        raise DataError(f"checkpoint={path}: {error}; use another checkpoint of the run") from error
    if digest != archive.get("sha256"):
        raise DataError(f"checkpoint={path}: {DAMAGED}")
    return _check_content(path, content)


def hash_content(content: Any) -> str:
    """Return the hex digest of nested containers, numbers, strings and tensors.

    Raises ValueError for a sparse or meta tensor.
    """
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            if part.layout != torch.strided or part.device.type == "meta":
                raise ValueError(f"contains a tensor {tuple(part.shape)} that is not stored")
            layout = (tuple(part.shape), part.stride(), part.storage_offset())
            digest.update(f"{part.dtype} {layout}".encode())
            # The storage is hashed, which is what the file holds. An expanded tensor of one byte
            # can stand for terabytes.
            storage = part.detach().untyped_storage().cpu()
            digest.update(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
        elif isinstance(part, dict):
            digest.update(f"dict {len(part)}".encode())
            for key, value in part.items():
                add(key)
                add(value)
        elif isinstance(part, (list, tuple)):
            digest.update(f"{type(part).__name__} {len(part)}".encode())
            for value in part:
                add(value)
        else:
            digest.update(f"{type(part).__name__} {part!r} ".encode())

    add(content)
    return digest.hexdigest()


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
        and payload.device.type == "cpu"
        and payload.numel() == payload.untyped_storage().nbytes()
    )
    content = payload.numpy().tobytes() if is_plain else b""
    digest = outer["sha256"]
    if not is_plain or not isinstance(digest, str) or hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"checkpoint={path}: {DAMAGED}")
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
