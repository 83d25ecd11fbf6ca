"""Write docs/configuration.md from brainseg/config/ and conf/: every command, setting and choice.

    python scripts/configuration_reference.py

tests/cli/test_help_text.py fails if the committed page differs.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from brainseg.cli import help_text
from brainseg.cli.commands import COMMANDS
from brainseg.cli.help_text import Setting
from brainseg.config import TYPES
from brainseg.config.compose import CONFIGS, compose_checked
from brainseg.core.files import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration: every setting

This page is written by `python scripts/configuration_reference.py` from `brainseg/config/` and
`conf/`. Edit those files, not this page. `python -m brainseg.COMMAND --help` prints the same in a
terminal. Add overrides, such as `scheduler=step --help`, to see the settings of an option.

A setting is written as `KEY=VALUE`, a choice as `GROUP=CHOICE`. A choice uses a file of
`conf/GROUP`, which sets some of the group's settings. A setting on the command line takes
precedence. `null` means none. `eval "$(brainseg completion bash)"` completes both with the Tab key
(also for zsh and fish).
"""


def page() -> str:
    """Return the complete page as Markdown."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parts = [
            HEAD,
            *(part for command in COMMANDS if command in TYPES for part in of_command(command)),
        ]
    return "\n".join(parts)


def of_command(command: str) -> Iterator[str]:
    """Yield the parts of a command's section: its own settings, then its groups.

    A group that is the same as for `train` is only named.
    """
    composed, kind = compose_checked(command, []), TYPES[command]
    values: Any = OmegaConf.to_container(composed, throw_on_missing=False)
    yield f"## {command}\n\n{sentence(COMMANDS[command])}\n"
    yield table(help_text.list_settings(kind, values=values))
    if command == "search":
        yield "Every other setting is one of [train](#train), the same in all trials.\n"
    chosen = help_text.list_choices(command)
    same = []
    for name, (_, meaning) in help_text.list_groups(kind).items():
        if command != "train" and as_in_train(composed, name):
            same.append(f"`{name}`")
            continue
        yield f"### {command}: {name}\n\n{sentence(meaning)}\n"
        node = composed._get_node(name)
        rows = list(rows_of(node, f"{name}.")) if node is not None and not node._is_none() else []
        yield table(rows) if rows else "Its settings are as for [train](#train).\n"
        # The choices are the same for all commands and are listed only once.
        if command == "train" and name in chosen:
            yield from of_choices(name, rows, *chosen[name])
    # Some choices set settings of several groups, so that they belong to no group.
    for name in [
        name for name in chosen if command == "train" and name not in help_text.list_groups(kind)
    ]:
        yield from of_choices(name, [], *chosen[name])
    if same:
        yield f"{', '.join(same)}: as for [train](#train).\n"


def as_in_train(composed: DictConfig, name: str) -> bool:
    """Return True if a group has the same settings and defaults as in train."""
    node, train_node = composed._get_node(name), compose_checked("train", [])._get_node(name)
    return (
        None not in (node, train_node)
        and OmegaConf.get_type(node) is OmegaConf.get_type(train_node)
        and node == train_node
    )


def rows_of(node: Any, prefix: str) -> Iterator[Setting]:
    """Yield the settings of a composed group and of the groups below it."""
    kind = OmegaConf.get_type(node)
    yield from help_text.list_settings(
        kind, prefix, OmegaConf.to_container(node, throw_on_missing=False)
    )
    for name in help_text.list_groups(kind):
        yield from rows_of(node._get_node(name), f"{prefix}{name}.")


def of_choices(
    group: str, rows: list[Setting], options: list[str], default: str | None
) -> Iterator[str]:
    """Yield the table of a group's choices, and the settings that only some of the choices have.

    The table describes each choice and lists the defaults that it changes.
    """
    defaults = {row.name: row.default for row in rows}
    lines, extra_tables = [], []
    for option in options:
        changes = []
        if rows:
            node = compose_checked("train", [f"{group}={option}"])._get_node(group)
            option_rows = list(rows_of(node, f"{group}."))
            changes = [
                f"`{row.name}={row.default}`"
                for row in option_rows
                if row.name in defaults and defaults[row.name] != row.default
            ]
            extra_rows = [row for row in option_rows if row.name not in defaults]
            if extra_rows:
                extra_tables += [f"With `{group}={option}`:\n", table(extra_rows)]
        star = " (default)" if option == default else ""
        meaning = cell(help_text.choice_description(group, option))
        lines.append(f"| `{group}={option}`{star} | {meaning} | {' '.join(changes)} |")
    if not rows:
        yield f"### train: {group}\n\nFiles that set settings of several groups; one at a time.\n"
    yield "\n".join(["| choice | is | sets |", "|---|---|---|", *lines, ""])
    yield from extra_tables


def table(rows: Iterable[Setting]) -> str:
    """Return the settings as a Markdown table."""
    defaults = {row: f"`{cell(row.default)}`" if row.default else "must be given" for row in rows}
    lines = [
        f"| `{row.name}` | {default} | {row.kind} | {cell(row.meaning)} |"
        for row, default in defaults.items()
    ]
    return "\n".join(["| setting | default | type | meaning |", "|---|---|---|---|", *lines, ""])


def sentence(text: str) -> str:
    """Return a help text as a sentence. A text that starts with `null:` gets code formatting."""
    return f"`null`{text[4:]}." if text.startswith("null:") else f"{text[:1].upper()}{text[1:]}."


def cell(text: str) -> str:
    """Return the text with the characters escaped that would break a table's cell."""
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    write_text(PAGE, page())
    print(PAGE)
