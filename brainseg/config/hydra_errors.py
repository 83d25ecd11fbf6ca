"""One-line messages for the errors of Hydra and OmegaConf: setting, value, rule and remedy.

The errors of both libraries carry the setting, the value and the known choices as attributes, so
their texts are not parsed.
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
from brainseg.config.launchers import FIXED_SETTINGS, LAUNCHERS, offered_settings
from brainseg.config.overrides import setting_of, value_of, values_by_setting
from brainseg.config.schema import flatten, setting_types
from brainseg.config.text import format_for_shell

RULES: dict[Any, str] = {
    int: "must be a whole number",
    float: "must be a number",
    bool: "must be true or false",
}
# Names that other commands, or other libraries, use for the same setting.
SYNONYMS = {
    "checkpoint": "run",
    "run": "checkpoint",
    "learning_rate": "optimizer.lr",
    "source": "input",
    "input": "source",
}
# The classes of these groups take further arguments, which are set below `options`.
WITH_OPTIONS = ("model", "loss", "optimizer")
# An error lists at most this many settings, so that it stays one readable line.
MAX_LISTED = 12


def explain_error(error: Exception, command: str, overrides: Sequence[str] = ()) -> str:
    """Return a one-line message for an error raised while a command's overrides were composed."""
    inner = error.__cause__ or error.__context__
    typed = values_by_setting(overrides)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return _explain_yaml_error(error)
    if isinstance(error, MissingConfigException):
        return _explain_unknown_choice(str(error.missing_cfg_file), list(error.options or ()))
    if isinstance(inner, ConfigKeyError | ConfigAttributeError) and inner.full_key:
        # OmegaConf names the first part that does not exist, such as modle for modle.depth.
        typed_name = (name for name in typed if f"{name}.".startswith(f"{inner.full_key}."))
        return _explain_unknown_setting(next(typed_name, str(inner.full_key)), command, typed)
    if isinstance(inner, ValidationError) and inner.full_key:
        rule = type_rule(str(inner.full_key), command, inner.object_type)
        return _explain_wrong_type(str(inner.full_key), inner.value, rule, typed)
    # The error does not name a setting. A setting of another choice, typed without that choice,
    # is a frequent mistake.
    for name in typed:
        group = name.partition(".")[0]
        if _choices_with(name, command) and group not in typed and group in setting_names(command):
            return _explain_unknown_setting(name, command, typed)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    cause = next(iter(str(error.__cause__ or "").splitlines()), "")
    return f"the settings cannot be read: {first}" + (
        f" ({cause})" if cause and cause not in first else ""
    )


def _explain_yaml_error(error: MarkedYAMLError) -> str:
    """Explain invalid YAML, such as a tab or a repeated name, with its file and line."""
    mark = error.problem_mark
    remedy = "indent lines with spaces, and use each name once per group"
    return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem}); {remedy}"


def suggest_setting(name: str, settings: Sequence[str], prefix: str = "") -> str:
    """Return "did you mean ...?" with the most similar of the settings.

    If none is similar, the settings are listed, or `--help` is named if there are many.
    """
    names = [prefix + setting for setting in settings]
    if "." not in name:
        names += sorted({setting.partition(".")[0] for setting in settings} - set(names))
    # The last part of a dotted name, such as lr for optimizer.lr, is the best hint.
    same_leaf = [setting for setting in settings if setting.rpartition(".")[2] == name]
    close = [prefix + same_leaf[0]] if same_leaf else difflib.get_close_matches(name, names, n=1)
    close = close or [synonym for synonym in (SYNONYMS.get(name, ""),) if synonym in settings]
    close = close or difflib.get_close_matches(name.rsplit(".", 1)[-1], settings, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return (
        f"known: {', '.join(settings)}"
        if len(settings) <= MAX_LISTED
        else "--help lists all settings"
    )


@cache
def setting_names(command: str) -> list[str]:
    """Return every dotted setting of a command with its default choices."""
    return list(flatten(OmegaConf.to_container(compose(command), throw_on_missing=False)))


def type_rule(name: str, command: str, chosen: Any = None) -> str:
    """Return the rule that follows from a setting's type, such as "must be a whole number".

    `chosen` is the class of the choice that the setting belongs to, if it is known. The rule is an
    empty string for other types.
    """
    hints = {hint for setting, hint in setting_types(TYPES[command]) if setting == name}
    if len(hints) > 1:
        return _rule_by_choice(name, chosen)
    hint = next(iter(hints), None)
    for kind in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(kind) is list:
            return "must be a list in brackets"
        if get_origin(kind) is dict:
            return f"must name arguments; write {name}.NAME=VALUE"
        if kind in RULES:
            return RULES[kind]
    return ""


def _rule_by_choice(name: str, chosen: Any) -> str:
    """Return the rule of a setting whose type depends on the choice of its group.

    The rule of the chosen class comes first.
    """
    group, _, leaf = name.partition(".")
    rules = [
        f"{RULES.get(hint, 'must be text')} with {group}={choice}"
        + (", which is chosen here" if kind is chosen else "")
        for choice, kind in sorted(CHOICES[group].items(), key=lambda item: item[1] is not chosen)
        for field, hint in setting_types(kind)
        if field == leaf
    ]
    return "; it ".join(rules)


def explain_missing_value(word: str, following: Sequence[str]) -> str:
    """Explain a word of the command line that is not NAME=VALUE.

    The words after it show whether the user typed spaces around the equals sign.
    """
    name = word.strip("=")
    if not re.fullmatch(r"[A-Za-z_][\w./@]*", name) or "/" in name:
        return f"{word}: is not a setting; write settings as NAME=VALUE, for example epochs=20"
    value = next((text for text in following if text != "="), "VALUE")
    has_spaces = following[:1] == ["="] or word.endswith("=") or "=" not in value
    value = value if has_spaces and "=" not in value else "VALUE"
    return f"{name}: has no value; write {name}={value}" + (
        " without spaces" if value != "VALUE" else ""
    )


def explain_unreadable(override: str, following: Sequence[str], command: str) -> str:
    """Explain an override that Hydra's grammar cannot parse."""
    name, value = setting_of(override), value_of(override)
    # The shell splits `a, b` at its space, so the first word ends with the comma.
    if value.rstrip().endswith(",") and following:
        return (
            f"{name}={value}: a value is missing after the comma; "
            f"write {name}={value}{following[0]} without spaces"
        )
    if not re.fullmatch(r"[\w$.@:/-]*", name, re.ASCII):
        return f"{name}: no such setting; {suggest_setting(name, setting_names(command))}"
    quoted = f"cannot be parsed; put text in quotes: {format_for_shell(name, value)}"
    return f"{name}={value}: {type_rule(name, command) or quoted}"


def explain_several_values(name: str, value: str, command: str) -> str:
    """Explain several values for a setting outside of a sweep."""
    remedies = []
    if type_rule(name, command).startswith("must be a list"):
        remedies.append(f"for a list write '{name}=[{value}]'")
    if command == "train":
        remedies.append(f"for a sweep write -m {shlex.quote(f'{name}={value}')}")
    return f"{name}={value}: several values; {', '.join(remedies) or 'give one'}"


def _explain_wrong_type(name: str, value: object, rule: str, typed: Mapping[str, str]) -> str:
    """Explain a value that does not follow the rule of its setting's type."""
    if value is None:
        as_text = format_for_shell(name, "null")
        return f"{name}=null: must have a value; for the text null write {as_text}"
    if rule.startswith("must be a list") and isinstance(value, str | int | float):
        rule += f"; write '{name}=[{value}]'"
    return f"{name}={typed.get(name, value)}: {rule or 'must be text'}"


def _explain_unknown_setting(name: str, command: str, typed: Mapping[str, str]) -> str:
    """Explain a setting that does not exist.

    The name may belong to another choice, be an argument of a class, or be misspelled.
    """
    # Without its package line, a file in these groups sets keys below the group's own name.
    if name in ("experiment", "sweep") and name in typed:
        return (
            f"{name}={typed[name]}: its file must begin with the line '# @package _global_', and "
            "be UTF-8 without a byte-order mark"
        )
    if name.startswith("hydra.launcher"):
        return _explain_launcher_setting(name, typed.get("hydra/launcher", "basic"))
    group, _, leaf = name.rpartition(".")
    options = (
        f"arguments of another {group} belong in {group}.options; "
        f"write {group}.options.{leaf}=VALUE"
    )
    if choices := _choices_with(name, command):
        remedy = options if group in WITH_OPTIONS else f"add {choices}"
        return f"{name}: is a setting of {choices}, not of the chosen {group}; {remedy}"
    names = setting_names(command)
    # A cutoff of 0.9 lets only misspelled settings pass. Other names are arguments of the class.
    if group in WITH_OPTIONS and not difflib.get_close_matches(name, names, cutoff=0.9):
        return f"{name}: no such setting; {options}"
    return f"{name}: no such setting; {suggest_setting(name, names)}"


def _explain_launcher_setting(name: str, launcher: str) -> str:
    """Explain a setting that the chosen launcher does not have."""
    target = LAUNCHERS[launcher]()._target_ if launcher in LAUNCHERS else ""
    offered = [key for key in offered_settings().get(target, ()) if key not in FIXED_SETTINGS]
    settings = f"settings of hydra/launcher={launcher}: {', '.join(offered) or 'none'}"
    remedy = (
        "; choose another launcher first, for example hydra/launcher=joblib"
        if launcher == "basic"
        else ""
    )
    return f"{name}: no such setting; {settings}{remedy}"


def _choices_with(name: str, command: str) -> str:
    """Return the choices of a group that have this setting, for example "split=kfold".

    The result is an empty string if every choice of the group has the setting.
    """
    group, _, leaf = name.partition(".")
    if group not in CHOICES or name not in dict(setting_types(TYPES[command])):
        return ""
    choices = [
        choice
        for choice, kind in CHOICES[group].items()
        if leaf in {field for field, _ in setting_types(kind)}
    ]
    # A setting of the choice "any" is shared by all choices.
    return "" if "any" in choices else " or ".join(f"{group}={choice}" for choice in choices)


def _explain_unknown_choice(missing: str, options: list[str]) -> str:
    """Explain a choice that a group does not have."""
    group, _, choice = missing.rpartition("/")
    suggestion = _suggest_choice(group, choice, options)
    return f"{group}={choice}: no such choice; {suggestion}known: {', '.join(options)}"


def _suggest_choice(group: str, choice: str, options: Sequence[str]) -> str:
    """Return a suggestion for an unknown choice, with a space at its end.

    The suggestion is an empty string if there is none.
    """
    device, _, number = choice.partition(":")
    if group == "device" and device in options and number:
        return f"write device={device} device.name={choice}; "
    # A GPU is called cuda here, as in torch.
    same = [
        option
        for option in options
        if option.lower() == choice.lower() or (choice.lower(), option) == ("gpu", "cuda")
    ]
    if close := same or difflib.get_close_matches(choice, options, n=1):
        return f"did you mean {close[0]}? "
    if group in ("model", "loss"):
        return f"for a class of MONAI write {group}=monai {group}.name={choice}; "
    if group == "optimizer":
        return f"for a class of torch.optim write optimizer=custom optimizer.name={choice}; "
    return f"for a file write data.path={choice}; " if group == "data" else ""
