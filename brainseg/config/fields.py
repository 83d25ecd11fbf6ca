"""What every setting is made of: a default, a help text, and checks whose errors are one line."""

import math
from dataclasses import field
from typing import Any

from brainseg.core.errors import check


def setting(default: Any, meaning: str) -> Any:
    """A dataclass field with its help text; lists and dicts are copied for each instance."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    if isinstance(default, type):
        return field(default_factory=default, metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    check(value in choices, name, value, f"must be one of {', '.join(choices)}")


def check_range(
    name: str, value: float | None, low: float, high: float = math.inf, remedy: str = ""
) -> None:
    """Refuse a number outside [low, high] or not finite; None (not set) passes."""
    if value is None:
        return
    finite = isinstance(value, int) or math.isfinite(
        value
    )  # math.isfinite fails on a whole number of 400 digits
    rule = (
        f"must be at least {low}{'' if finite else ' and finite'}"
        if high == math.inf
        else f"must lie between {low} and {high}"
    )
    check(finite and low <= value <= high, name, value, rule, remedy)


def check_names(setting: str, value: Any) -> list[str]:
    """A name, or a list of names, as a list; anything else is refused."""
    names = value if isinstance(value, list) else [value]
    check(
        bool(names) and all(isinstance(name, str) and name for name in names),
        setting,
        value,
        "must be a name, or a list of names",
    )
    return names
