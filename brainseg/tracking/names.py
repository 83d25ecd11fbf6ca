"""Names as MLflow takes them: of metrics and params, and of experiments."""

import hashlib
import posixpath
from collections.abc import Iterable

LONGEST_KEY, LONGEST_EXPERIMENT = 250, 500  # characters that MLflow takes
SIGNS = "_-. :/"  # besides letters and digits


def mlflow_keys(names: Iterable[str]) -> dict[str, str]:
    """Return the key in MLflow of each name of a metric or param; different names get different keys.

    A sign that MLflow refuses, such as a parenthesis or a plus in the name of a class, becomes an underscore.
    A digest tells apart names that would then be the same.
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
    key = "".join(letter if letter.isalnum() or letter in SIGNS else "_" for letter in name)
    # MLflow refuses what would be another path: `a//b`, `a/../b` and `a/`.
    key = posixpath.normpath(key).lstrip("./") or "_"
    return shorten(key, name, LONGEST_KEY)


def experiment_name(name: str) -> str:
    """Return the name of an experiment in MLflow: the name itself, or if MLflow takes none so long, its beginning and a digest."""
    return shorten(name, name, LONGEST_EXPERIMENT)


def shorten(text: str, name: str, longest: int) -> str:
    """Return `text`, or where it is too long its beginning and a digest of `name`."""
    return text if len(text) <= longest else f"{text[: longest - 9]}-{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
