"""What a search varies: a YAML file by setting name, or values typed as in a sweep.

    optimizer.lr: {low: 1e-4, high: 1e-2, log: true}      a number between two ends, on a logarithmic scale
    model.width: {low: 8, high: 32, step: 8}              whole numbers if all are: 8, 16, 24, 32
    optimizer: {choices: [adamw, sgd]}                    a setting or a group of choices; text is read as on the command line

Typed: `model.depth=3,4,5`, `'model.width=range(8,33,8)'`, `'optimizer.lr=tag(log,interval(1e-4,1e-2))'`.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from brainseg.config.compose import CONFIGS, as_request_errors, is_hydra_setting, parse_overrides
from brainseg.config.text import as_typed
from brainseg.core.errors import check

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Dimension = dict[
    str, Any
]  # {"low", "high", "log", "step"} with None for what is not given, or {"choices"}
Space = dict[str, Dimension]


def load_space(name: str) -> Space:
    """The space of `conf/search/NAME.yaml`, or of the YAML file `name`. Raises RequestError."""
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else CONFIGS / "search" / f"{name}.yaml"
    known = ", ".join(sorted(one.stem for one in (CONFIGS / "search").glob("*.yaml")))
    check(
        path.is_file() and (own or "/" not in name),
        "space",
        name,
        "no such space",
        f"known: {known}, or a YAML file of your own",
    )
    with as_request_errors():
        loaded: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    check(
        isinstance(loaded, dict) and bool(loaded),
        "space",
        name,
        "must hold settings",
        "as optimizer.lr: {low: 1e-4, high: 1e-2}",
    )
    return {
        str(setting): _checked(f"space={name}: {setting}", str(setting), given)
        for setting, given in loaded.items()
    }


def format_value(overrides: list[str]) -> tuple[list[str], Space]:
    """The overrides of a command line that stay the same in every trial, and the space of those that are sweeps. Raises RequestError."""
    parsed = parse_overrides("train", as_typed("train", overrides, sweeps=True))
    swept = {one.get_key_element(): one for one in parsed if one.is_sweep_override()}
    fixed = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    return fixed, {
        name.lstrip("+"): _checked(name, name.lstrip("+"), _typed(one))
        for name, one in swept.items()
    }


def _typed(override: Override) -> Dimension:
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return {"low": value.start, "high": value.end, "log": "log" in value.tags}
    if isinstance(value, RangeSweep):
        numbers = (
            list(value.range()) if value.step else []
        )  # Hydra takes a step of 0 until it counts
        check(
            len(numbers) > 1,
            override.get_key_element(),
            override.input_line,
            "must name two values at least",
        )
        return {
            "low": min(numbers),
            "high": max(numbers),
            "step": abs(numbers[1] - numbers[0]),
            "log": "log" in value.tags,
        }
    supported = isinstance(value, ChoiceSweep)
    check(
        supported,
        override.get_key_element(),
        override.input_line,
        "cannot be searched",
        "give values, range(...) or interval(...)",
    )
    return {"choices": list(override.sweep_string_iterator())}


def _checked(label: str, setting: str, given: Any) -> Dimension:
    """A dimension as it is stored, every key there. Raises RequestError naming `label`, the value, the rule and the remedy."""
    named = bool(re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", setting)) and not is_hydra_setting(
        f"{setting}="
    )
    check(named, label, given, "is not a setting's name", "as optimizer.lr")
    wrong = (
        sorted(set(given) - {"low", "high", "log", "step", "choices"})
        if isinstance(given, dict)
        else [str(given)]
    )
    check(
        not wrong,
        label,
        ", ".join(map(str, wrong)),
        "must be {low, high}, with log or step if wanted, or {choices}",
    )
    if "choices" in given:
        choices = given["choices"]
        check(set(given) == {"choices"}, label, given, "takes either choices or low and high")
        plain = isinstance(choices, list) and all(
            one is None or isinstance(one, bool | int | float | str) for one in choices
        )
        check(
            plain,
            f"{label}.choices",
            choices,
            "must be a list of numbers or names",
            "a list as value is written as text: '[10,20]'",
        )
        check(
            len({text(one) for one in choices}) == len(choices) > 0,
            f"{label}.choices",
            choices,
            "must name each value once",
        )
        return {"choices": choices}
    low, high, log, step = (given.get(key) for key in ("low", "high", "log", "step"))
    for key, value in (
        ("low", low),
        ("high", high),
        *((("step", step),) if step is not None else ()),
    ):
        number = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        check(number, f"{label}.{key}", value, "must be a number")
    check(low < high, label, f"{low} to {high}", "low must lie below high")
    check(log in (None, True, False), f"{label}.log", log, "must be true or false")
    check(not log or low > 0, f"{label}.low", low, "must be above 0 on a logarithmic scale")
    check(
        not (log and step),
        f"{label}.step",
        step,
        "has no meaning on a logarithmic scale",
        "leave out log or step",
    )
    steps = (high - low) / step if step else 0
    check(
        step is None or (step > 0 and abs(steps - round(steps)) < 1e-9),
        f"{label}.step",
        step,
        f"must divide {low} to {high} evenly",
    )
    return {"low": low, "high": high, "log": bool(log), "step": step}


def distributions(space: Space) -> dict[str, "BaseDistribution"]:
    """The space in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for setting, one in space.items():
        if "choices" in one:
            found[setting] = CategoricalDistribution(one["choices"])
        elif all(isinstance(one[key], int | None) for key in ("low", "high", "step")):
            found[setting] = IntDistribution(
                one["low"], one["high"], log=one["log"], step=one["step"] or 1
            )
        else:
            found[setting] = FloatDistribution(
                one["low"], one["high"], log=one["log"], step=one["step"]
            )
    return found


def ends(dimension: Dimension) -> list[Any]:
    """The values to try before a search starts: every choice, or both ends; what lies between is as good."""
    return dimension["choices"] if "choices" in dimension else [dimension["low"], dimension["high"]]


def overrides(settings: dict[str, Any]) -> list[str]:
    """What a trial proposes, as overrides of `brainseg.train`; `options` are free and need Hydra's `++`."""
    return [
        f"{'++' if '.options.' in name else ''}{name}={text(value)}"
        for name, value in settings.items()
    ]


def text(value: Any) -> str:
    """A value as it is typed: four digits of a proposed number are read at a glance, and matter more than the twelve behind them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(float(f"{value:.4g}")) if isinstance(value, float) else str(value)
