"""Settings that hold text, and their values as typed. Names and paths may contain any character.

Hydra's grammar reads `2024_01_15` as a number and rejects `größe.h5`. The schema shows which
settings hold text, so their values are put in quotes before Hydra parses them. The following
keep their meaning: text already in quotes, `null`, references such as `${model.name}`, the
brackets of a list and, in a sweep, commas and Hydra's functions.
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
from brainseg.config.overrides import rename_setting, setting_of, value_of
from brainseg.config.schema import TYPES, setting_types
from brainseg.core.errors import check

QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
# A comma within a reference, or after a backslash, separates nothing.
REFERENCE_OR_ESCAPE = re.compile(r"\$\{[^}]*\}|\\[\\()\[\]{}:=, \t]")
# The end of one value in a list: a comma, a closing bracket, or the end of the text.
END = re.compile(r"\s*(?:[,\]}]|$)")
ESCAPE = re.compile(r"\\([\\()\[\]{}:=, \t])")
FUNCTION = re.compile(
    r"\s*(choice|range|interval|glob|tag|sort|shuffle|str|int|float|bool)\s*\((.*)\)\s*", re.DOTALL
)
# Hydra reads this text unchanged without quotes, so most overrides stay as they were typed.
PLAIN = re.compile(
    r"(?!(?:true|false|null|inf|nan)$)(?:\.{0,2}/)?[a-z_][\w./@-]*(?::/[\w./@-]+)?",
    re.ASCII | re.IGNORECASE,
)


@cache
def text_settings(command: str) -> dict[str, str]:
    """Return the settings of a command that hold text, each with its shape.

    The shapes are text, list, mapping, and either (a text or a list).
    """
    settings = dict(setting_types(TYPES[command]))
    if command == "train":
        # Only train takes sweeps, so only train has a launcher.
        for launcher in LAUNCHERS.values():
            settings.update(setting_types(launcher, "hydra.launcher."))
    shapes = {name: shape for name, hint in settings.items() if (shape := text_shape(hint))}
    return (text_settings("train") | shapes) if command == "search" else shapes


def text_shape(hint: Any) -> str | None:
    """Return the shape of the text in a field of this type, or None if it holds no text."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((shape for part in get_args(hint) if (shape := text_shape(part))), None)
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
    """Return a path in quotes, in which `${` is not a reference to a setting."""
    return quote(path.replace("${", "\\${"))


def format_for_shell(name: str, text: str) -> str:
    """Return the words to type in a shell that give a setting exactly this text."""
    return shlex.quote(f"{name}={QuotedString(text, Quote.double).with_quotes()}")


def text_of(value: str) -> str:
    """Return the text that a typed value means.

    Quotes and escapes are removed, and a leading `~/` is replaced by the home folder.
    """
    if QUOTED.fullmatch(value):
        return str(OverridesParser.create().parse_override(f"x={value}").value())
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return ESCAPE.sub(r"\1", value)


def quote_text_values(command: str, overrides: Iterable[str], sweeps: bool = False) -> list[str]:
    """Return the overrides, with text in quotes wherever Hydra would read another value.

    With `sweeps`, a comma separates the values of a sweep. Without, a comma outside of quotes and
    brackets is ambiguous, and RequestError is raised. Earlier names of settings become the present
    ones. Applying this function to its own result changes nothing.
    """
    shapes = text_settings(command)
    quoted = []
    for override in map(rename_setting, overrides):
        name, value = setting_of(override), value_of(override)
        # The entries of a mapping, such as sequences.FLAIR, are texts.
        shape = "text" if shapes.get(name.rpartition(".")[0]) == "mapping" else shapes.get(name)
        if shape is not None and "=" in override and not override.startswith("~"):
            # Hydra's own settings are not swept.
            takes_several = sweeps and not name.startswith("hydra.")
            prefix = override[: len(override) - len(value)]
            override = prefix + _quote_value(command, name, value, shape, takes_several)
        quoted.append(override)
    return quoted


def _quote_value(command: str, name: str, value: str, shape: str, sweeps: bool) -> str:
    """Return the value of one override with its texts in quotes."""
    if function := FUNCTION.fullmatch(value):
        if function[1] != "choice" or not sweeps:
            return value
        # Hydra loses the quotes within choice(...), so its values are written with commas alone.
        value = function[2]
    has_brackets = shape == "text" and value.strip()[:1] + value.strip()[-1:] in ("[]", "{}")
    remedy = f"for text with brackets write {format_for_shell(name, value)}"
    check(not has_brackets, name, value, "must be a single text, not a list", remedy)
    parts = split_at_commas(value, keep_brackets=shape != "text")
    if len(parts) == 1:
        return _quote_element(value, shape)
    remedies = [f"for text with a comma write {format_for_shell(name, text_of(value))}"]
    if shape != "text":
        remedies.insert(0, f"for a list write '{name}=[{value}]'")
    if not sweeps and command == "train":
        remedies.insert(0, "for a sweep put -m first")
    check(sweeps, name, value, "several values", ", ".join(remedies))
    check(
        all(part.strip() for part in parts),
        name,
        value,
        "a value is missing beside a comma",
        "write the values without spaces",
    )
    return ",".join(_quote_element(part.strip(), shape) for part in parts)


def _quote_element(value: str, shape: str) -> str:
    """Return one value (a text, a list, a mapping or null) with its texts in quotes."""
    bare = value.strip()
    if not value or QUOTED.fullmatch(bare) or bare.lower() == "null":
        return value
    elements = split_at_commas(bare[1:-1], keep_brackets=True)
    if shape in ("list", "either") and bare[0] + bare[-1] == "[]":
        # A list within a list is not changed, so that the schema rejects it.
        texts = (
            element
            if element.strip()[:1] in ("[", "{")
            else _quote_element(element.strip(), "text")
            for element in elements
        )
        return f"[{','.join(texts)}]"
    if shape == "mapping" and bare[0] + bare[-1] == "{}":
        pairs = (element.partition(":") for element in elements)
        entries = (key + colon + _quote_element(text.strip(), "text") for key, colon, text in pairs)
        return f"{{{','.join(entries)}}}"
    if shape in ("list", "mapping") or PLAIN.fullmatch(value):
        return value
    return quote(text_of(value))


def split_at_commas(value: str, keep_brackets: bool) -> list[str]:
    """Split a value at its commas.

    Commas in references, escapes and values that begin with a quote do not count. With
    `keep_brackets`, commas in brackets do not count either.
    """
    parts, depth, position = [""], 0, 0
    while position < len(value):
        # Quotes open only at the start of a value. Within brackets a value may start anywhere.
        token = _match_quoted(value, position) if not parts[-1].strip() or depth else None
        token = token or REFERENCE_OR_ESCAPE.match(value, position)
        piece = token[0] if token else value[position]
        position += len(piece)
        depth += keep_brackets * ((piece in ("[", "{")) - (piece in ("]", "}")))
        if piece == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _match_quoted(value: str, position: int) -> re.Match[str] | None:
    """Return the text in quotes that starts at `position`, if it is a whole value.

    An apostrophe within a name starts no quoted text.
    """
    quoted = QUOTED.match(value, position)
    return quoted if quoted and END.match(value, quoted.end()) else None
