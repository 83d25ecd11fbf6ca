"""What a command's settings are, read off `config/` and `conf/`: for `--help`, for docs/configuration.md and for the shell's completion.

Nothing is written down twice: type, default and meaning are those of the dataclass field, choices are the files of a group.
"""

import ast
import shutil
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from brainseg.cli.commands import COMMANDS
from brainseg.config import TYPES
from brainseg.config.compose import CONFIGS, HERE
from brainseg.config.schema import group_of

KINDS = {int: "int", float: "float", bool: "true/false", str: "text", Any: "text or list"}
FLAGS = {
    "--help": "show this page; add overrides to see the settings of an option, such as `scheduler=step --help`",
    "--cfg job": "print the settings as YAML, overrides included, and run nothing",
    "--info defaults": "print which files the settings come from; also searchpath, plugins, config",
    "--config-dir DIR": "folder with further choices, such as DIR/loss/mine.yaml",
}
MULTIRUN = {
    "-m": "run every combination of the values listed, such as `-m seed=0,1 model.depth=3,4`"
}


class Setting(NamedTuple):
    name: str  # dotted
    kind: str
    default: str  # as it is typed
    meaning: str


def settings(kind: type, prefix: str = "", values: Any = None) -> Iterator[Setting]:
    """The settings of a dataclass itself, those of its groups left out; defaults from `values` where it holds them."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if group_of(hints[field.name]) is None:
            made = (
                field.default_factory() if field.default_factory is not MISSING else field.default
            )
            default = values.get(field.name, made) if isinstance(values, dict) else made
            yield Setting(
                prefix + field.name,
                describe_type(hints[field.name]),
                format_value(default),
                field.metadata["help"],
            )


def groups(kind: type) -> dict[str, tuple[type, str]]:
    """The groups of a dataclass: name to (dataclass, meaning)."""
    hints = get_type_hints(kind)
    found = {
        field.name: (group_of(hints[field.name]), field.metadata["help"]) for field in fields(kind)
    }
    return {name: (group, meaning) for name, (group, meaning) in found.items() if group is not None}


def describe_type(hint: Any) -> str:
    """A type in a word or two."""
    if get_origin(hint) in (Union, types.UnionType):
        *inner, last = [describe_type(one) for one in get_args(hint) if one is not type(None)]
        return " or ".join([*inner, last, "null"])
    if get_origin(hint) is list:
        return f"list of {describe_type(get_args(hint)[0])}"
    return "arguments" if get_origin(hint) is dict else KINDS[hint]


def format_value(value: Any) -> str:
    """A value as it is typed on the command line: null, true, [test], {smooth: 1.0}; nothing for one that must be given."""
    if isinstance(value, str):
        return "" if value == "???" else value
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000)
        .removesuffix("\n")
        .removesuffix("...")
        .strip()
    )


def choices_of_command(command: str) -> dict[str, str | None]:
    """The groups of files that a command chooses from, with the default choice."""
    listed: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{command}.yaml").defaults)
    return {
        group: choice
        for entry in listed
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }


def choices(
    command: str, overrides: list[str] | None = None
) -> dict[str, tuple[list[str], str | None]]:
    """The same with all choices of each, those of `--config-dir` included; call it inside Hydra's `initialize_config_dir`."""
    loader, chosen = GlobalHydra.instance().config_loader(), choices_of_command(command)
    found = {
        group: loader.get_group_options(group, config_name=command, overrides=overrides or [])
        for group in chosen
    }
    return {group: (found[group], choice) for group, choice in chosen.items()}


def comment(group: str, choice: str) -> str:
    """What a choice's YAML says of itself in its first line."""
    lines = (CONFIGS / group / f"{choice}.yaml").read_text().splitlines()
    return next(
        line for line in lines if line.startswith("# ") and not line.startswith("# @")
    ).removeprefix("# ")


def purpose(command: str) -> str:
    """What the command does, and what its module says of that behind its first lines: the examples."""
    said = str(ast.get_docstring(ast.parse((HERE / f"{command}.py").read_text()), clean=False))
    _, _, examples = said.partition("\n\n")
    return f"brainseg {command}: {COMMANDS[command]}\n\n{examples.rstrip()}"


def help_page(command: str, composed: DictConfig, overrides: list[str]) -> str:
    """What --help prints, for a terminal of its width."""
    width = max(80, min(shutil.get_terminal_size().columns, 140))
    parts = [purpose(command)]
    if listed := choices(
        command, [one for one in overrides if one.startswith("hydra.searchpath=")]
    ):
        parts.append(
            "Choices, as GROUP=CHOICE; * is the default\n"
            + "\n".join(
                _row(
                    f"  {group}",
                    16,
                    " ".join(f"{one}*" if one == default else one for one in options),
                    width,
                )
                for group, (options, default) in listed.items()
            )
        )
    parts += [
        "\n".join([title, *(_line(one, width) for one in rows)])
        for title, rows in _sections(composed, TYPES[command])
    ]
    if command == "search":
        parts.append(
            "And every setting of `python -m brainseg.train --help`, the same in all trials."
        )
    flags = FLAGS | (MULTIRUN if command == "train" else {})
    parts.append(
        "Flags\n"
        + "\n".join(_row(f"  {flag}", 22, meaning, width) for flag, meaning in flags.items())
    )
    return "\n\n".join(parts)


def _sections(node: Any, kind: type, prefix: str = "") -> Iterator[tuple[str, list[Setting]]]:
    """Titles and settings of a composed config, group by group; of a choice its own settings, too."""
    values: Any = OmegaConf.to_container(node, throw_on_missing=False)
    yield "Settings, as KEY=VALUE", list(settings(kind, prefix, values))
    for name, (group, meaning) in groups(kind).items():
        child = node._get_node(name)
        if child is None or child._is_none():
            yield f"{prefix}{name}: {meaning}", []
            continue
        chosen = OmegaConf.get_type(child)
        (_, rows), *deeper = _sections(
            child, chosen if is_dataclass(chosen) else group, f"{prefix}{name}."
        )
        yield f"{prefix}{name}: {meaning}", rows
        yield from deeper


def _line(setting: Setting, width: int) -> str:
    left = f"  {setting.name}={setting.default}"
    return _row(
        left,
        34,
        f"{setting.meaning} ({setting.kind}{'' if setting.default else ', must be given'})",
        width,
    )


def _row(left: str, column: int, text: str, width: int) -> str:
    """`left`, then `text` from `column` on, wrapped there; below `left` where that is too long."""
    first = left.ljust(column) if len(left) < column else f"{left}\n{' ' * column}"
    return first + f"\n{' ' * column}".join(
        textwrap.wrap(text, width - column, break_on_hyphens=False)
    )
