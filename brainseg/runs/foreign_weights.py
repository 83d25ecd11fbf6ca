"""Weights that another program saved: unwrapped, and matched with the names of our network.

{"state_dict": weights, "epoch": 3}      a wrapper, as in MONAI's and Lightning's checkpoints
{"module.conv.weight": ...}              a prefix of DataParallel (`module.`), torch.compile
                                         (`_orig_mod.`) or Lightning (`model.`)
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from brainseg.core.errors import RequestError

WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "network_weights", "net")
# The counters of batch norm may be missing: older programs do not save them, and torch then counts
# from zero.
COUNTERS = ".num_batches_tracked"


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
    """Return the weights by the names that a network expects.

    The other two values are the prefix that was removed and the names of the weights that the
    network does not have. Raises RequestError, which names the checkpoint `name` and the settings
    of the `network`, if names are missing, a shape differs, or two prefixes fit.
    """
    needed = [key for key in expected if not key.endswith(COUNTERS)]
    # Each place where the first needed name ends a name of the file is a candidate for the prefix.
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
            f"checkpoint={name}: contains {len(fitting)} networks, under {_abbreviate(fitting)}; "
            "save only the weights of one network"
        )
    # If no prefix fits, the error message is about the one with the most matching names.
    prefix = (
        fitting[0]
        if fitting
        else max(
            prefixes,
            key=lambda candidate: sum(candidate + key in weights for key in needed),
            default="",
        )
    )
    matched = {key: weights[prefix + key] for key in expected if prefix + key in weights}
    unexpected = [
        key
        for key in weights
        if not (key.startswith(prefix) and key.removeprefix(prefix) in expected)
    ]
    missing = [key for key in needed if key not in matched]
    shapes = [
        f"{key} {tuple(value.shape)}, not {tuple(expected[key].shape)}"
        for key, value in matched.items()
        if value.shape != expected[key].shape
    ]
    # Behind a prefix, weights that the network does not have are allowed.
    if missing or shapes or (unexpected and not prefix):
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        faults = "; ".join(
            f"{len(keys)} {word}: {_abbreviate(keys)}" for word, keys in parts.items() if keys
        )
        behind = f' behind the prefix "{prefix}"' if prefix else ""
        raise RequestError(
            f"checkpoint={name}: its weights{behind} are not those of {network}: {faults}; "
            "set model.* as in the training of these weights"
        )
    return matched, prefix, unexpected


def _abbreviate(names: Iterable[str]) -> str:
    """Return the first three names as text, with an ellipsis for the rest."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
