"""Settings that hold text, and their values as they are typed: names and paths may contain any sign.

Hydra's grammar reads `2024_01_15` as a number and `größe.h5` not at all. The schema says which settings hold text, so their
values are put in quotes before Hydra parses them. What is already in quotes, `null`, references such as `${model.name}`, the
brackets of a list and, in a sweep, its commas and functions keep their meaning.
"""

import os
import re
import shlex
import types
from collections.abc import Iterable
from functools import cache
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from brainseg.config.launchers import LAUNCHERS
from brainseg.config.overrides import setting_of, value_of
from brainseg.config.schema import TYPES, hints
from brainseg.core.errors import check

QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
# A reference and Hydra's escapes, within which a comma separates nothing.
WHOLE = re.compile(r"\$\{[^}]*\}|\\[\\()\[\]{}:=, \t]")
END = re.compile(r"\s*(?:[,\]}]|$)")
ESCAPE = re.compile(r"\\([\\()\[\]{}:=, \t])")
FUNCTION = re.compile(
    r"\s*(choice|range|interval|glob|tag|sort|shuffle|str|int|float|bool)\s*\((.*)\)\s*", re.DOTALL
)
# Text that Hydra reads as the same text without quotes, so that most overrides stay as they were typed.
PLAIN = re.compile(
    r"(?!(?:true|false|null|inf|nan)$)(?:\.{0,2}/)?[a-z_][\w./@-]*(?::/[\w./@-]+)?",
    re.ASCII | re.IGNORECASE,
)


@cache
def text_settings(command: str) -> dict[str, str]:
    """Return the settings of a command that hold text, each with its shape: text, list, either or mapping."""
    found = dict(hints(TYPES[command]))
    if command == "train":
        for launcher in LAUNCHERS.values():
            found.update(hints(launcher, "hydra.launcher."))
    shapes = {name: shape for name, hint in found.items() if (shape := shape_of(hint))}
    return (text_settings("train") | shapes) if command == "search" else shapes


def shape_of(hint: Any) -> str | None:
    """Return the shape of the text that a field of this type holds, or None if the field holds something else."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((shape for part in get_args(hint) if (shape := shape_of(part))), None)
    shapes: dict[Any, str] = {
        str: "text",
        list[str]: "list",
        dict[str, str]: "mapping",
        Any: "either",
    }
    return next((shape for kind, shape in shapes.items() if hint == kind), None)


def quote(text: str) -> str:
    """Return text in quotes, from which Hydra's grammar reads exactly this text."""
    return QuotedString(text, Quote.single).with_quotes()


def quote_path(path: str) -> str:
    """Return a path in quotes, in which `${` is no reference to a setting."""
    return quote(path.replace("${", "\\${"))


def to_type(name: str, text: str) -> str:
    """Return the words that a user types in a shell to give a setting this text, whatever signs are in it."""
    return shlex.quote(f"{name}={QuotedString(text, Quote.double).with_quotes()}")


def text_of(value: str) -> str:
    """Return the text that a typed value means: without quotes and escapes, and `~/` replaced by the home folder."""
    if QUOTED.fullmatch(value):
        return str(OverridesParser.create().parse_override(f"x={value}").value())
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return ESCAPE.sub(r"\1", value)


def as_typed(command: str, overrides: Iterable[str], sweeps: bool = False) -> list[str]:
    """Return the overrides with the values of text settings in quotes where Hydra would read something else.

    With `sweeps`, a comma separates the values of a sweep. Without, a comma outside of quotes and brackets is ambiguous.
    Calling this function on its own result changes nothing. Raises RequestError for a comma that is ambiguous.
    """
    shapes = text_settings(command)
    quoted = []
    for override in overrides:
        name, value = setting_of(override), value_of(override)
        shape = "text" if shapes.get(name.rpartition(".")[0]) == "mapping" else shapes.get(name)
        if shape is not None and "=" in override and not override.startswith("~"):
            several = sweeps and not name.startswith("hydra.")
            override = f"{override[: len(override) - len(value)]}{_value(command, name, value, shape, several)}"
        quoted.append(override)
    return quoted


def _value(command: str, name: str, value: str, shape: str, sweeps: bool) -> str:
    """Return the value of one override with its texts in quotes."""
    if function := FUNCTION.fullmatch(value):
        if function[1] != "choice" or not sweeps:
            return value
        # Hydra loses the quotes within choice(...), so its values are written with commas alone.
        value = function[2]
    brackets = shape == "text" and value.strip()[:1] + value.strip()[-1:] in ("[]", "{}")
    remedy = f"text in brackets is put in quotes, as {to_type(name, value)}"
    check(not brackets, name, value, "takes one text, and no list", remedy)
    parts = split(value, grouping=shape != "text")
    if len(parts) == 1:
        return _element(value, shape)
    typed = f"text that holds a comma is put in quotes, as {to_type(name, text_of(value))}"
    if shape != "text":
        typed = f"a list is written in brackets, as '{name}=[{value}]', and {typed}"
    if not sweeps and command == "train":
        typed = f"a sweep over them begins with -m, {typed}"
    check(sweeps, name, value, "several values", typed)
    check(
        all(part.strip() for part in parts),
        name,
        value,
        "a value is missing beside a comma",
        "write the values without spaces",
    )
    return ",".join(_element(part.strip(), shape) for part in parts)


def _element(value: str, shape: str) -> str:
    """Return one value with its texts in quotes: a text, a list, a mapping, or null."""
    bare = value.strip()
    if not value or QUOTED.fullmatch(bare) or bare.lower() == "null":
        return value
    inner = split(bare[1:-1], grouping=True)
    if shape in ("list", "either") and bare[0] + bare[-1] == "[]":
        # A list within a list is left as it is, so that the schema refuses it.
        texts = (
            part if part.strip()[:1] in ("[", "{") else _element(part.strip(), "text")
            for part in inner
        )
        return f"[{','.join(texts)}]"
    if shape == "mapping" and bare[0] + bare[-1] == "{}":
        pairs = (part.partition(":") for part in inner)
        return (
            "{"
            + ",".join(key + colon + _element(text.strip(), "text") for key, colon, text in pairs)
            + "}"
        )
    if shape in ("list", "mapping") or PLAIN.fullmatch(value):
        return value
    return quote(text_of(value))


def split(value: str, grouping: bool) -> list[str]:
    """Split a value at its commas, except within quotes, references and escapes and, with `grouping`, within brackets."""
    parts, depth, position = [""], 0, 0
    while position < len(value):
        token = _quoted_at(value, position) if not parts[-1].strip() or depth else None
        token = token or WHOLE.match(value, position)
        piece = token[0] if token else value[position]
        position += len(piece)
        depth += grouping * ((piece in ("[", "{")) - (piece in ("]", "}")))
        if piece == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _quoted_at(value: str, position: int) -> re.Match[str] | None:
    """Return the text in quotes that begins here, if it is a whole value: an apostrophe within a name opens no quotes."""
    quoted = QUOTED.match(value, position)
    return quoted if quoted and END.match(value, quoted.end()) else None
