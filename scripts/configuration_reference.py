"""Write docs/configuration.md from brainseg/config/ and conf/: every command, setting and choice.

    python scripts/configuration_reference.py

tests/cli/test_help_text.py fails when the committed page is another.
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

Made by `python scripts/configuration_reference.py` from `brainseg/config/` and `conf/`; edit those. `python -m brainseg.COMMAND --help`
prints the same in a terminal; add overrides, such as `scheduler=step --help`, to see the settings of an option.

A setting is `KEY=VALUE`, a choice `GROUP=CHOICE`: it takes a file of `conf/GROUP`, which sets some of the group's settings; what is typed
wins. `null` stands for none. `eval "$(brainseg completion bash)"` completes both with the Tab key (also zsh, fish).
"""


def page() -> str:
    """The whole page, Markdown."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parts = [
            HEAD,
            *(part for command in COMMANDS if command in TYPES for part in of_command(command)),
        ]
    return "\n".join(parts)


def of_command(command: str) -> Iterator[str]:
    """A command's section: its own settings, then its groups; those that are as for `train` are only named."""
    composed, kind = compose_checked(command, []), TYPES[command]
    values: Any = OmegaConf.to_container(composed, throw_on_missing=False)
    yield f"## {command}\n\n{sentence(COMMANDS[command])}\n"
    yield table(help_text.settings(kind, values=values))
    if command == "search":
        yield "Every other setting is one of [train](#train), the same in all trials.\n"
    chosen = help_text.choices(command)
    same = []
    for name, (_, meaning) in help_text.groups(kind).items():
        if command != "train" and as_in_train(composed, name):
            same.append(f"`{name}`")
            continue
        yield f"### {command}: {name}\n\n{sentence(meaning)}\n"
        node = composed._get_node(name)
        rows = list(rows_of(node, f"{name}.")) if node is not None and not node._is_none() else []
        yield table(rows) if rows else "Its settings are as for [train](#train).\n"
        if command == "train" and name in chosen:
            yield from of_choices(name, rows, *chosen[name])
    for name in [
        name for name in chosen if command == "train" and name not in help_text.groups(kind)
    ]:
        yield from of_choices(name, [], *chosen[name])
    if same:
        yield f"{', '.join(same)}: as for [train](#train).\n"


def as_in_train(composed: DictConfig, name: str) -> bool:
    """Whether a group has the settings that it has in train, and their defaults."""
    node, trains = composed._get_node(name), compose_checked("train", [])._get_node(name)
    return (
        None not in (node, trains)
        and OmegaConf.get_type(node) is OmegaConf.get_type(trains)
        and node == trains
    )


def rows_of(node: Any, prefix: str) -> Iterator[Setting]:
    """The settings of a composed group and of the groups below it."""
    kind = OmegaConf.get_type(node)
    yield from help_text.settings(
        kind, prefix, OmegaConf.to_container(node, throw_on_missing=False)
    )
    for name in help_text.groups(kind):
        yield from rows_of(node._get_node(name), f"{prefix}{name}.")


def of_choices(
    group: str, rows: list[Setting], options: list[str], default: str | None
) -> Iterator[str]:
    """A group's files: what each is and sets, and the settings that it alone has."""
    known = {row.name: row.default for row in rows}
    lines, further = [], []
    for option in options:
        sets = []
        if rows:
            its = list(
                rows_of(
                    compose_checked("train", [f"{group}={option}"])._get_node(group), f"{group}."
                )
            )
            sets = [
                f"`{row.name}={row.default}`"
                for row in its
                if row.name in known and known[row.name] != row.default
            ]
            own = [row for row in its if row.name not in known]
            further += [f"With `{group}={option}`:\n", table(own)] if own else []
        star = " (default)" if option == default else ""
        lines.append(
            f"| `{group}={option}`{star} | {cell(help_text.comment(group, option))} | {' '.join(sets)} |"
        )
    if not rows:
        yield f"### train: {group}\n\nFiles that set settings of several groups; one at a time.\n"
    yield "\n".join(["| choice | is | sets |", "|---|---|---|", *lines, ""])
    yield from further


def table(rows: Iterable[Setting]) -> str:
    """Settings as a Markdown table."""
    defaults = {row: f"`{cell(row.default)}`" if row.default else "must be given" for row in rows}
    lines = [
        f"| `{row.name}` | {default} | {row.kind} | {cell(row.meaning)} |"
        for row, default in defaults.items()
    ]
    return "\n".join(["| setting | default | type | meaning |", "|---|---|---|---|", *lines, ""])


def sentence(text: str) -> str:
    """A help text as a sentence; `null: ...` begins with a value."""
    return f"`null`{text[4:]}." if text.startswith("null:") else f"{text[:1].upper()}{text[1:]}."


def cell(text: str) -> str:
    """Text for a table's cell."""
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    write_text(PAGE, page())
    print(PAGE)
