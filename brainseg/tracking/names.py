"""Names of metrics, params and experiments in the form that MLflow accepts."""

import hashlib
import posixpath
from collections.abc import Iterable

# The numbers of characters that MLflow accepts.
LONGEST_KEY, LONGEST_EXPERIMENT = 250, 500
# The characters that MLflow accepts in a key, besides letters and digits.
ALLOWED_CHARACTERS = "_-. :/"


def mlflow_keys(names: Iterable[str]) -> dict[str, str]:
    """Return the MLflow key of each name of a metric or param. Different names get different keys.

    A character that MLflow refuses, such as a parenthesis or a plus in the name of a class, becomes
    an underscore. A digest is appended to names that would then be equal.
    """
    keys = {name: _key(name) for name in names}
    counts: dict[str, int] = {}
    for key in keys.values():
        counts[key] = counts.get(key, 0) + 1
    return {
        name: key
        if key == name or counts[key] == 1
        else shorten(f"{key}-{_digest(name)}", name, LONGEST_KEY)
        for name, key in keys.items()
    }


def _key(name: str) -> str:
    key = "".join(
        letter if letter.isalnum() or letter in ALLOWED_CHARACTERS else "_" for letter in name
    )
    # MLflow refuses names that a path library would normalize: `a//b`, `a/../b` and `a/`.
    key = posixpath.normpath(key).lstrip("./") or "_"
    return shorten(key, name, LONGEST_KEY)


def experiment_name(name: str) -> str:
    """Return the name of an experiment in MLflow, shortened if it is too long for MLflow."""
    return shorten(name, name, LONGEST_EXPERIMENT)


def shorten(text: str, name: str, longest: int) -> str:
    """Return `text`, or if it is too long, its beginning and a digest of `name`."""
    return text if len(text) <= longest else f"{text[: longest - 9]}-{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
