"""Patterns of file names with `*`, `?` and the fields `{patient}`, `{session}` and `{slice}`."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from brainseg.core.errors import check
from brainseg.data.naming import is_system, printable

FIELDS = {"patient": "[^/]+", "session": "[^/]+", "slice": "[0-9]+"}
# Levels of folders below the source that are listed.
DEEPEST = 8
IMAGE_SUFFIXES = (
    ".nii",
    ".nii.gz",
    ".nii.bz2",
    ".hdr",
    ".hdr.gz",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".mgz",
    ".mgh",
)


class Pattern:
    """A pattern of paths relative to a folder, with `/` between their parts.

    `pattern.match(path)` returns the fields of a path that fits, else None. The texts that stars
    stand for are the fields `star1`, `star2` and so on. Raises RequestError for an invalid pattern.
    """

    def __init__(self, setting: str, text: str) -> None:
        self.setting, self.text = setting, text
        expression, fields, stars = "", set(), 0
        parts = re.split(r"(\{\w*\}|\*\*/|\*|\?)", text.removeprefix("./"))
        for part in parts:
            name = part[1:-1] if part.startswith("{") else ""
            if name:
                check(
                    name in FIELDS,
                    setting,
                    text,
                    f"{part} is no field",
                    f"known: {', '.join(FIELDS)}",
                )
                expression += f"(?P={name})" if name in fields else f"(?P<{name}>{FIELDS[name]})"
                fields.add(name)
            elif part == "*":
                stars += 1
                expression += f"(?P<star{stars}>[^/]*)"
            else:
                expression += {"**/": "(?:[^/]+/)*", "?": "[^/]"}.get(part, re.escape(part))
        check(
            bool(text) and not text.startswith("/"),
            setting,
            text,
            "must be a pattern relative to the source",
        )
        self.fields, self.stars = fields, stars
        # The number of characters that stand for themselves.
        self.literal = sum(len(part) for part in parts if part[:1] not in ("{", "*", "?"))
        self._expression = re.compile(expression)

    def match(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path that fits, else None."""
        match = self._expression.fullmatch(path)
        return match.groupdict() if match else None


def list_files(source: Path, suffixes: Sequence[str] | None = None) -> list[str]:
    """Return the files below a folder with these suffixes, as sorted relative paths.

    Hidden files and files of operating systems are left out, also the `._` files that macOS packs
    into archives. Links are followed. Raises OSError for folders that cannot be listed.
    """
    return sorted(
        path
        for path in _walk(source, "", DEEPEST)
        if suffixes is None or path.lower().endswith(tuple(suffixes))
    )


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    """Yield the files below a folder as paths that begin with `prefix`."""
    for entry in os.scandir(folder):
        path = prefix + entry.name
        if is_system(entry.name):
            continue
        if entry.is_dir():
            if depth:
                yield from _walk(folder / entry.name, path + "/", depth - 1)
        else:
            yield path


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in its case, such as .nii.gz or .png, else ""."""
    base = name.rpartition("/")[2]
    suffix = max((end for end in IMAGE_SUFFIXES if base.lower().endswith(end)), key=len, default="")
    return base[len(base) - len(suffix) :] if suffix else Path(base).suffix


def stem_of(name: str) -> str:
    """Return a file's name without its suffix."""
    return name.removesuffix(suffix_of(name))


def summarise_files(paths: Iterable[str], most: int = 4) -> str:
    """Return the number of files in words, with the first `most` names as examples."""
    names = list(paths)
    if not names:
        return "no files"
    count = f"{len(names)} file{'s' if len(names) > 1 else ''}"
    return f"{count}, such as {', '.join(map(printable, names[:most]))}"
