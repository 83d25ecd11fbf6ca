"""The search space: the settings that a search varies.

A space is a YAML file by setting name, or values typed as in a sweep.

    optimizer.lr: {low: 1e-4, high: 1e-2, log: true}    a number, on a logarithmic scale
    model.width: {low: 8, high: 32, step: 8}            integers if all are: 8, 16, 24, 32
    optimizer: {choices: [adamw, sgd]}                  a setting or a group of choices

Text in a file is parsed as on the command line. Typed values are `model.depth=3,4,5`,
`'model.width=range(8,33,8)'` or `'optimizer.lr=tag(log,interval(1e-4,1e-2))'`.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from brainseg.config.compose import CONFIGS, as_request_errors, is_hydra_setting, parse_overrides
from brainseg.config.text import quote_text_values
from brainseg.core.errors import check

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# The keys are "choices" alone, or "low", "high", "log" and "step", where step may be None.
Dimension = dict[str, Any]
# Dimension by setting name.
Space = dict[str, Dimension]


def load_space(name: str) -> Space:
    """Return the space of `conf/search/NAME.yaml`, or of the YAML file `name`.

    Raises RequestError if there is no such file or its content is not a space.
    """
    is_file_name = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file_name else CONFIGS / "search" / f"{name}.yaml"
    names = ", ".join(sorted(file.stem for file in (CONFIGS / "search").glob("*.yaml")))
    # A name with a slash could leave the folder conf/search.
    check(
        path.is_file() and (is_file_name or "/" not in name),
        "space",
        name,
        "no such space",
        f"choose one of {names}, or give a YAML file",
    )
    with as_request_errors():
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    check(
        isinstance(content, dict) and bool(content),
        "space",
        name,
        "must hold settings",
        "for example optimizer.lr: {low: 1e-4, high: 1e-2}",
    )
    return {
        str(setting): _check_dimension(f"space={name}: {setting}", str(setting), dimension)
        for setting, dimension in content.items()
    }


def split_overrides(overrides: list[str]) -> tuple[list[str], Space]:
    """Return the fixed overrides of a command line, and the space of its sweeps.

    Fixed overrides are the same in every trial. Raises RequestError if a sweep cannot be searched.
    """
    parsed = parse_overrides("train", quote_text_values("train", overrides, sweeps=True))
    sweeps = {
        override.get_key_element(): override for override in parsed if override.is_sweep_override()
    }
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    # Hydra marks a setting that is added with a leading "+".
    space = {
        name.lstrip("+"): _check_dimension(name, name.lstrip("+"), _parse_sweep(override))
        for name, override in sweeps.items()
    }
    return fixed, space


def _parse_sweep(override: Override) -> Dimension:
    """Return the dimension that a typed sweep describes. Raise RequestError for other sweeps."""
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return {"low": value.start, "high": value.end, "log": "log" in value.tags}
    if isinstance(value, RangeSweep):
        # Hydra accepts a step of 0, and fails only when it counts.
        numbers = list(value.range()) if value.step else []
        check(
            len(numbers) > 1,
            override.get_key_element(),
            override.input_line,
            "must contain at least two values",
        )
        return {
            "low": min(numbers),
            "high": max(numbers),
            "step": abs(numbers[1] - numbers[0]),
            "log": "log" in value.tags,
        }
    # The remaining sweeps, such as glob(*), name no values.
    check(
        isinstance(value, ChoiceSweep),
        override.get_key_element(),
        override.input_line,
        "cannot be searched",
        "give values, range(...) or interval(...)",
    )
    return {"choices": list(override.sweep_string_iterator())}


def _check_dimension(label: str, setting: str, content: Any) -> Dimension:
    """Return a dimension with all its keys.

    Raises RequestError if `content` is not a dimension. The error begins with `label`.
    """
    # Hydra's own settings, such as hydra.run.dir, belong to the command and not to a trial.
    is_setting = bool(re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", setting)) and not is_hydra_setting(
        f"{setting}="
    )
    check(is_setting, label, content, "is not a setting's name", "use a name such as optimizer.lr")
    unknown = (
        sorted(set(content) - {"low", "high", "log", "step", "choices"})
        if isinstance(content, dict)
        else [str(content)]
    )
    check(
        not unknown,
        label,
        ", ".join(map(str, unknown)),
        "must be {low, high}, optionally with log or step, or {choices}",
    )
    if "choices" in content:
        choices = content["choices"]
        check(
            set(content) == {"choices"}, label, content, "must be either {choices} or {low, high}"
        )
        check(
            isinstance(choices, list)
            and all(
                choice is None or isinstance(choice, bool | int | float | str) for choice in choices
            ),
            f"{label}.choices",
            choices,
            "must be a list of numbers or names",
            "write a list that is one of the values as text: '[10,20]'",
        )
        # Compared as the text that a run gets, in which close numbers may be equal.
        check(
            len({value_text(choice) for choice in choices}) == len(choices) > 0,
            f"{label}.choices",
            choices,
            "must name each value once",
        )
        return {"choices": choices}
    low, high, log, step = (content.get(key) for key in ("low", "high", "log", "step"))
    for key, value in (
        ("low", low),
        ("high", high),
        *((("step", step),) if step is not None else ()),
    ):
        # In Python, True and False are integers.
        is_number = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        check(is_number, f"{label}.{key}", value, "must be a number")
    check(low < high, label, f"{low} to {high}", "low must be below high")
    check(log in (None, True, False), f"{label}.log", log, "must be true or false")
    check(not log or low > 0, f"{label}.low", low, "must be above 0 on a logarithmic scale")
    check(
        not (log and step),
        f"{label}.step",
        step,
        "has no meaning on a logarithmic scale",
        "leave out log or step",
    )
    # Optuna would lower `high` with a mere warning. The tolerance allows for rounding.
    steps = (high - low) / step if step else 0
    check(
        step is None or (step > 0 and abs(steps - round(steps)) < 1e-9),
        f"{label}.step",
        step,
        f"must divide {low} to {high} evenly",
    )
    return {"low": low, "high": high, "log": bool(log), "step": step}


def distributions(space: Space) -> dict[str, "BaseDistribution"]:
    """Return Optuna's distribution of each setting of the space."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    by_setting: dict[str, BaseDistribution] = {}
    for setting, dimension in space.items():
        if "choices" in dimension:
            by_setting[setting] = CategoricalDistribution(dimension["choices"])
            continue
        low, high, log, step = (dimension[key] for key in ("low", "high", "log", "step"))
        if all(isinstance(value, int | None) for value in (low, high, step)):
            by_setting[setting] = IntDistribution(low, high, log=log, step=step or 1)
        else:
            by_setting[setting] = FloatDistribution(low, high, log=log, step=step)
    return by_setting


def end_values(dimension: Dimension) -> list[Any]:
    """Return the values to check before a search starts: every choice, or both ends of a range.

    If both ends are valid, so are the values between them.
    """
    return dimension["choices"] if "choices" in dimension else [dimension["low"], dimension["high"]]


def to_overrides(settings: dict[str, Any]) -> list[str]:
    """Return the settings of a trial as overrides of `brainseg.train`."""
    # `options` accept any name, so that Hydra needs "++" to set or add one.
    return [
        f"{'++' if '.options.' in name else ''}{name}={value_text(value)}"
        for name, value in settings.items()
    ]


def value_text(value: Any) -> str:
    """Return a value as a user would type it, with four significant digits of a decimal number.

    Four digits can be read at a glance. They matter more than the twelve digits that follow.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(float(f"{value:.4g}")) if isinstance(value, float) else str(value)
