"""The settings of each command, read from the dataclasses in `config/` and the YAML of `conf/`.

`--help`, docs/configuration.md and the shell completion are made from them. Nothing is written
down twice. Type, default and meaning belong to the dataclass field. Choices are the files of a
group.
"""

import ast
import shutil
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from brainseg.cli.commands import COMMANDS, module_of
from brainseg.config import TYPES
from brainseg.config.compose import CONFIGS, PACKAGE_FOLDER
from brainseg.config.schema import group_of

TYPE_NAMES = {int: "int", float: "float", bool: "true/false", str: "text", Any: "text or list"}
FLAGS = {
    "--help": (
        "show this page; add overrides to see the settings of an option, "
        "such as `scheduler=step --help`"
    ),
    "--cfg job": "print the settings as YAML, overrides included, and run nothing",
    "--info defaults": (
        "print which files the settings come from; also searchpath, plugins, config"
    ),
    "--config-dir DIR": "folder with further choices, such as DIR/loss/mine.yaml",
}
TRAINING_FLAGS = {"-v": "print every epoch, all scores, and the traceback of a failure"}
MULTIRUN_FLAGS = {
    "-m": "run every combination of the values listed, such as `-m seed=0,1 model.depth=3,4`"
}


class Setting(NamedTuple):
    """Documentation of a setting: dotted name, type, default and meaning.

    The default is written as on the command line. It is empty for a required setting.
    """

    name: str
    kind: str
    default: str
    meaning: str


def list_settings(schema: type, prefix: str = "", values: Any = None) -> Iterator[Setting]:
    """Yield the settings of a dataclass, without those of its groups.

    A default in the mapping `values` replaces the default of the field.
    """
    hints = get_type_hints(schema)
    for field in fields(schema):
        if group_of(hints[field.name]) is None:
            field_default = (
                field.default_factory() if field.default_factory is not MISSING else field.default
            )
            default = (
                values.get(field.name, field_default) if isinstance(values, dict) else field_default
            )
            yield Setting(
                prefix + field.name,
                describe_type(hints[field.name]),
                format_value(default),
                field.metadata["help"],
            )


def list_groups(schema: type) -> dict[str, tuple[type, str]]:
    """Return the groups of a dataclass, as a mapping from name to (dataclass, meaning)."""
    hints = get_type_hints(schema)
    candidates = {
        field.name: (group_of(hints[field.name]), field.metadata["help"])
        for field in fields(schema)
    }
    return {
        name: (group, meaning) for name, (group, meaning) in candidates.items() if group is not None
    }


def describe_type(hint: Any) -> str:
    """Return a type hint in words, such as `int or null`."""
    if get_origin(hint) in (Union, types.UnionType):
        *first, last = [
            describe_type(option) for option in get_args(hint) if option is not type(None)
        ]
        return " or ".join([*first, last, "null"])
    if get_origin(hint) is list:
        return f"list of {describe_type(get_args(hint)[0])}"
    return "arguments" if get_origin(hint) is dict else TYPE_NAMES[hint]


def format_value(value: Any) -> str:
    """Return a value as typed on the command line, such as null, true, [test] or {smooth: 1.0}.

    The result is empty for OmegaConf's `???`, which marks a required setting.
    """
    if isinstance(value, str):
        return "" if value == "???" else value
    # PyYAML ends a bare scalar with the line "...".
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000)
        .removesuffix("\n")
        .removesuffix("...")
        .strip()
    )


def default_choices(command: str) -> dict[str, str | None]:
    """Return the config groups that a command chooses from, each with its default choice."""
    defaults: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{command}.yaml").defaults)
    return {
        group: choice
        for entry in defaults
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }


def list_choices(
    command: str, overrides: list[str] | None = None
) -> dict[str, tuple[list[str], str | None]]:
    """Return all choices and the default choice of each config group of a command.

    Choices in the folder of `--config-dir` are included. Call this function inside Hydra's
    `initialize_config_dir`.
    """
    loader, defaults = GlobalHydra.instance().config_loader(), default_choices(command)
    options = {
        group: loader.get_group_options(group, config_name=command, overrides=overrides or [])
        for group in defaults
    }
    return {group: (options[group], choice) for group, choice in defaults.items()}


def choice_description(group: str, choice: str) -> str:
    """Return the first comment line of a choice's YAML file, which describes the choice."""
    lines = (CONFIGS / group / f"{choice}.yaml").read_text("utf-8").splitlines()
    # `# @package` is a directive of Hydra, not a description.
    return next(
        line for line in lines if line.startswith("# ") and not line.startswith("# @")
    ).removeprefix("# ")


def command_description(command: str) -> str:
    """Return a command's purpose, followed by the examples in the docstring of its module."""
    # The source is parsed, so that the command's module need not be imported.
    docstring = str(
        ast.get_docstring(ast.parse(_source_of(command).read_text("utf-8")), clean=False)
    )
    _, _, examples = docstring.partition("\n\n")
    return f"brainseg {command}: {COMMANDS[command]}\n\n{examples.rstrip()}"


def _source_of(command: str) -> Path:
    """Return the file of the command's module."""
    return PACKAGE_FOLDER.joinpath(*module_of(command).split(".")[1:]).with_suffix(".py")


def format_help(command: str, composed: DictConfig, overrides: list[str]) -> str:
    """Return the page that --help prints, wrapped at the width of the terminal."""
    width = max(80, min(shutil.get_terminal_size().columns, 140))
    parts = [command_description(command)]
    # Only the search path changes which choices exist. It is set by --config-dir.
    search_paths = [override for override in overrides if override.startswith("hydra.searchpath=")]
    if group_choices := list_choices(command, search_paths):
        rows = []
        for group, (options, default) in group_choices.items():
            names = " ".join(f"{option}*" if option == default else option for option in options)
            rows.append(_format_row(f"  {group}", 16, names, width))
        parts.append("Choices, as GROUP=CHOICE; * is the default\n" + "\n".join(rows))
    parts += [
        "\n".join([title, *(_format_setting(setting, width) for setting in section)])
        for title, section in _list_sections(composed, TYPES[command])
    ]
    if command == "search":
        parts.append(
            "A search also takes every setting of `python -m brainseg.train --help`. "
            "Such a setting is the same in all trials."
        )
    flags = FLAGS | (TRAINING_FLAGS if command in ("train", "search") else {})
    flags |= MULTIRUN_FLAGS if command == "train" else {}
    parts.append(
        "Flags\n"
        + "\n".join(_format_row(f"  {flag}", 22, meaning, width) for flag, meaning in flags.items())
    )
    return "\n\n".join(parts)


def _list_sections(
    node: Any, schema: type, prefix: str = ""
) -> Iterator[tuple[str, list[Setting]]]:
    """Yield the title and the settings of a composed config and, recursively, of its groups."""
    values: Any = OmegaConf.to_container(node, throw_on_missing=False)
    yield "Settings, as KEY=VALUE", list(list_settings(schema, prefix, values))
    for name, (group, meaning) in list_groups(schema).items():
        child = node._get_node(name)
        if child is None or child._is_none():
            yield f"{prefix}{name}: {meaning}", []
            continue
        # A choice may have its own dataclass, with settings that the group's dataclass lacks.
        chosen_type = OmegaConf.get_type(child)
        (_, section), *subsections = _list_sections(
            child, chosen_type if is_dataclass(chosen_type) else group, f"{prefix}{name}."
        )
        # The title "Settings, as KEY=VALUE" is replaced by the group's name and meaning.
        yield f"{prefix}{name}: {meaning}", section
        yield from subsections


def _format_setting(setting: Setting, width: int) -> str:
    """Return a setting as a row of the help page."""
    left = f"  {setting.name}={setting.default}"
    required = "" if setting.default else ", must be given"
    return _format_row(left, 34, f"{setting.meaning} ({setting.kind}{required})", width)


def _format_row(left: str, column: int, text: str, width: int) -> str:
    """Return `left` followed by `text`, which starts at `column` and is wrapped at `width`.

    `text` starts on the next line if `left` is too long.
    """
    indent = " " * column
    first = left.ljust(column) if len(left) < column else f"{left}\n{indent}"
    # Names such as bce-dice and --config-dir stay in one piece.
    lines = textwrap.wrap(text, width - column, break_on_hyphens=False)
    return first + f"\n{indent}".join(lines)
