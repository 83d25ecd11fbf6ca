"""Building blocks of the settings: fields with help texts, and checks with one-line errors."""

import math
from dataclasses import field
from typing import Any

from brainseg.core.errors import check


def setting(default: Any, meaning: str) -> Any:
    """Return a dataclass field with its help text. Lists and dicts are copied per instance."""
    # Dataclasses reject a mutable default, because all instances would share it.
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    if isinstance(default, type):
        return field(default_factory=default, metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise RequestError unless the value is one of `choices`."""
    check(value in choices, name, value, f"must be one of {', '.join(choices)}")


def check_range(
    name: str, value: float | None, low: float, high: float = math.inf, remedy: str = ""
) -> None:
    """Raise RequestError for a number that is outside [low, high] or not finite.

    None means that the setting has no value, and is accepted.
    """
    if value is None:
        return
    # An int is always finite, and math.isfinite fails on one of 400 digits.
    finite = isinstance(value, int) or math.isfinite(value)
    rule = (
        f"must be at least {low}{'' if finite else ' and finite'}"
        if high == math.inf
        else f"must lie between {low} and {high}"
    )
    check(finite and low <= value <= high, name, value, rule, remedy)


def check_tags(tags: list[str]) -> None:
    """Raise RequestError unless every tag is a text without a comma, which separates tags."""
    for tag in tags:
        check(bool(tag.strip()) and "," not in tag, "tags", tag, "must be a text without a comma")


def check_names(setting: str, value: Any) -> list[str]:
    """Return a name, or a list of names, as a list. Raise RequestError for any other value."""
    names = value if isinstance(value, list) else [value]
    check(
        bool(names) and all(isinstance(name, str) and name for name in names),
        setting,
        value,
        "must be a name, or a list of names",
    )
    return names
