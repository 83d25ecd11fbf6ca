"""Weights that another program saved: taken out of what is around them, and matched with the names of our network.

{"state_dict": weights, "epoch": 3}      a wrapper, as of MONAI's and Lightning's checkpoints
{"module.conv.weight": ...}              a prefix, as of DataParallel (`module.`), torch.compile (`_orig_mod.`) or Lightning (`model.`)
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from brainseg.core.errors import RequestError

WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "network_weights", "net")
COUNTERS = ".num_batches_tracked"  # of batch norm: older programs do not save it, and torch then counts from zero


def is_state_dict(weights: Any) -> bool:
    """Return True for a dict of tensors by name."""
    return isinstance(weights, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    )


def unwrap_weights(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict that `content` is or wraps, at most two wrappers deep, or None."""
    for _ in range(3):
        if not isinstance(content, dict) or not content:
            return None
        if is_state_dict(content):
            return dict(content)
        content = next(
            (content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None
        )
    return None


def match_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str, network: str
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Return the weights under the names that a network expects, the prefix that was removed, and the names of what is left over.

    Raises RequestError, which names the checkpoint `name` and the settings of the `network`, if names are missing, a shape differs, or
    two prefixes would do.
    """
    needed = [key for key in expected if not key.endswith(COUNTERS)]
    prefixes = (
        {
            key.removesuffix(needed[0])
            for key in weights
            if key == needed[0] or key.endswith(f".{needed[0]}")
        }
        if needed
        else {""}
    )
    fitting = sorted(
        prefix for prefix in prefixes if all(prefix + key in weights for key in needed)
    )
    if "" in fitting:
        fitting = [""]
    if len(fitting) > 1:
        raise RequestError(
            f"checkpoint={name}: holds {len(fitting)} networks, under {_some(fitting)}; save the one that is meant alone"
        )
    prefix = (
        fitting[0]
        if fitting
        else max(
            prefixes, key=lambda each: sum(each + key in weights for key in needed), default=""
        )
    )
    chosen = {key: weights[prefix + key] for key in expected if prefix + key in weights}
    others = [
        key
        for key in weights
        if not (key.startswith(prefix) and key.removeprefix(prefix) in expected)
    ]
    missing = [key for key in needed if key not in chosen]
    shapes = [
        f"{key} {tuple(value.shape)}, not {tuple(expected[key].shape)}"
        for key, value in chosen.items()
        if value.shape != expected[key].shape
    ]
    if missing or shapes or (others and not prefix):
        parts = {"missing": missing, "unexpected": others, "of another shape": shapes}
        faults = "; ".join(
            f"{len(keys)} {word}: {_some(keys)}" for word, keys in parts.items() if keys
        )
        behind = f' behind the prefix "{prefix}"' if prefix else ""
        raise RequestError(
            f"checkpoint={name}: its weights{behind} are not those of {network}: {faults}; set model.* as it was trained"
        )
    return chosen, prefix, others


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
