"""One line for what Hydra and OmegaConf refuse: the setting, its value, the rule and the remedy.

The errors of both libraries carry the setting, the value and the known choices as attributes, so their texts are not read.
"""

import difflib
import re
import shlex
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Union, get_args, get_origin

from hydra import compose
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError
from yaml import MarkedYAMLError

from brainseg.config import CHOICES, TYPES
from brainseg.config.launchers import FIXED, LAUNCHERS, offered_settings
from brainseg.config.overrides import setting_of, value_of, values_by_setting
from brainseg.config.schema import flatten, hints
from brainseg.config.text import to_type

RULES: dict[Any, str] = {
    int: "must be a whole number",
    float: "must be a number",
    bool: "must be true or false",
}
# Other commands call the same thing so.
SYNONYMS = {
    "checkpoint": "run",
    "run": "checkpoint",
    "learning_rate": "optimizer.lr",
    "source": "input",
    "input": "source",
}
WITH_OPTIONS = ("model", "loss", "optimizer")
LISTED = 12  # a longer list of settings is left to --help


def explain_error(error: Exception, command: str, overrides: Sequence[str] = ()) -> str:
    """Return the one line for an error that was raised while `overrides` of a command were composed."""
    inner = error.__cause__ or error.__context__
    typed = values_by_setting(overrides)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return _bad_yaml(error)
    if isinstance(error, MissingConfigException):
        return _no_choice(str(error.missing_cfg_file), list(error.options or ()))
    if isinstance(inner, ConfigKeyError | ConfigAttributeError) and inner.full_key:
        # OmegaConf names the first part that is not there, as modle of modle.depth.
        typed_name = (name for name in typed if f"{name}.".startswith(f"{inner.full_key}."))
        return _no_setting(next(typed_name, str(inner.full_key)), command, typed)
    if isinstance(inner, ValidationError) and inner.full_key:
        return _wrong_value(str(inner.full_key), inner.value, command, typed)
    for name in typed:
        group = name.partition(".")[0]
        if _choices_with(name, command) and group not in typed and group in settings(command):
            return _no_setting(name, command, typed)
    text = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    cause = next(iter(str(error.__cause__ or "").splitlines()), "")
    return f"the settings cannot be read: {text[0]}" + (
        f" ({cause})" if cause and cause not in text[0] else ""
    )


def _bad_yaml(error: MarkedYAMLError) -> str:
    """Name the file and the line where YAML cannot be read, as for a tab or a name that stands there twice."""
    mark = error.problem_mark
    remedy = "lines are indented by spaces, and a name stands once in its group"
    return f"{mark.name}, line {mark.line + 1}: no YAML ({error.problem}); {remedy}"


def suggest_setting(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return which of `known` a name may have meant, as "did you mean ...?", or all of them."""
    names = [prefix + setting for setting in known]
    if "." not in name:
        names += sorted({setting.partition(".")[0] for setting in known} - set(names))
    last = [setting for setting in known if setting.rpartition(".")[2] == name]
    close = [prefix + last[0]] if last else difflib.get_close_matches(name, names, n=1)
    close = close or [meant for meant in (SYNONYMS.get(name, ""),) if meant in known]
    close = close or difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known)}" if len(known) <= LISTED else "--help lists all settings"


@cache
def settings(command: str) -> list[str]:
    """Return every dotted setting that a command's default choices take."""
    return list(flatten(OmegaConf.to_container(compose(command), throw_on_missing=False)))


def rule_of(name: str, command: str) -> str:
    """Return the rule that the type of a setting sets, such as "must be a whole number", or an empty string."""
    hint = dict(hints(TYPES[command])).get(name)
    for kind in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(kind) is list:
            return "must be a list in brackets"
        if get_origin(kind) is dict:
            return f"must name arguments, as {name}.NAME=VALUE"
        if kind in RULES:
            return RULES[kind]
    return ""


def explain_missing_value(word: str, following: Sequence[str]) -> str:
    """Explain a word of the command line that is no NAME=VALUE, by what stands after it."""
    name = word.strip("=")
    if not re.fullmatch(r"[A-Za-z_][\w./@]*", name) or "/" in name:
        return f"{word}: is no setting; settings are written NAME=VALUE, as epochs=20"
    value = next((text for text in following if text != "="), "VALUE")
    spaces = following[:1] == ["="] or word.endswith("=") or "=" not in value
    value = value if spaces and "=" not in value else "VALUE"
    return f"{name}: has no value; write {name}={value}" + (
        " without spaces" if value != "VALUE" else ""
    )


def explain_unreadable(override: str, following: Sequence[str], command: str) -> str:
    """Explain an override that Hydra's grammar cannot parse."""
    name, value = setting_of(override), value_of(override)
    if value.rstrip().endswith(",") and following:
        return f"{name}={value}: a value is missing after the comma; write {name}={value}{following[0]} without spaces"
    if not re.fullmatch(r"[\w$.@:/-]*", name, re.ASCII):
        return f"{name}: no such setting; {suggest_setting(name, settings(command))}"
    rule = rule_of(name, command)
    return f"{name}={value}: {rule or f'cannot be read; put text in quotes, as {to_type(name, value)}'}"


def explain_several_values(name: str, value: str, command: str) -> str:
    """Explain several values for a setting outside of a sweep."""
    listed = f"a list is written in brackets, as '{name}=[{value}]'"
    many = [listed] if rule_of(name, command).startswith("must be a list") else []
    many += (
        ["a sweep over them begins with -m, as -m " + shlex.quote(f"{name}={value}")]
        if command == "train"
        else []
    )
    return f"{name}={value}: several values; {'; '.join(many) or 'give one'}"


def _wrong_value(name: str, value: object, command: str, typed: Mapping[str, str]) -> str:
    """Explain a value that is not of its setting's type."""
    shown = typed.get(name, value)
    if value is None:
        return f"{name}=null: must have a value; a text null is put in quotes, as {to_type(name, 'null')}"
    rule = rule_of(name, command)
    if rule.startswith("must be a list") and isinstance(value, str | int | float):
        rule += f", as '{name}=[{value}]'"
    return f"{name}={shown}: {rule or 'must be text'}"


def _no_setting(name: str, command: str, typed: Mapping[str, str]) -> str:
    """Explain a setting that is not there: one of another choice, an argument of a class, or a slip."""
    if name in ("experiment", "sweep") and name in typed:
        return f"{name}={typed[name]}: its file must begin with the line # @package _global_, as UTF-8 without a byte-order mark"
    if name.startswith("hydra.launcher"):
        launcher = typed.get("hydra/launcher", "basic")
        target = LAUNCHERS[launcher]()._target_ if launcher in LAUNCHERS else ""
        taken = (
            ", ".join(key for key in offered_settings().get(target, ()) if key not in FIXED)
            or "nothing"
        )
        others = "; choose one first, as hydra/launcher=joblib" if launcher == "basic" else ""
        return f"{name}: no such setting; of hydra/launcher={launcher} can be set: {taken}{others}"
    group, _, leaf = name.rpartition(".")
    options = f"the arguments of another {group} go under {group}.options, as {group}.options.{leaf}=VALUE"
    if choices := _choices_with(name, command):
        remedy = options if group in WITH_OPTIONS else f"choose {choices} as well"
        return f"{name}: not a setting of the {group} chosen but of {choices}; {remedy}"
    known = settings(command)
    if group in WITH_OPTIONS and not difflib.get_close_matches(name, known, cutoff=0.9):
        return f"{name}: no such setting; {options}"
    return f"{name}: no such setting; {suggest_setting(name, known)}"


def _choices_with(name: str, command: str) -> str:
    """Return the choices of a group that have this setting while the default choice lacks it, as "split=kfold"."""
    group, _, leaf = name.partition(".")
    if group not in CHOICES or name not in dict(hints(TYPES[command])):
        return ""
    nodes = CHOICES[group]
    having = [
        choice for choice, kind in nodes.items() if leaf in {field for field, _ in hints(kind)}
    ]
    return " or ".join(f"{group}={choice}" for choice in having) if "any" not in having else ""


def _no_choice(missing: str, options: list[str]) -> str:
    """Explain a choice that a group does not have."""
    group, _, choice = missing.rpartition("/")
    return f"{group}={choice}: no such choice; {_meant(group, choice, options)}known: {', '.join(options)}"


def _meant(group: str, choice: str, options: Sequence[str]) -> str:
    """Return what a choice that is not there may have meant, and a space; an empty string if no option is like it."""
    device, _, number = choice.partition(":")
    if group == "device" and device in options and number:
        return f"write device={device} device.name={choice}; "
    same = [
        option
        for option in options
        if option.lower() == choice.lower() or (choice.lower(), option) == ("gpu", "cuda")
    ]
    if close := same or difflib.get_close_matches(choice, options, n=1):
        return f"did you mean {close[0]}? "
    if group in ("model", "loss"):
        return f"for one of MONAI's, {group}=monai {group}.name={choice}; "
    if group == "optimizer":
        return f"for another of torch.optim, optimizer=own optimizer.name={choice}; "
    return f"a file is data.path={choice}; " if group == "data" else ""
