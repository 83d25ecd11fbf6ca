"""Patterns of file names: `*`, `?` and the fields `{patient}`, `{session}` and `{slice}`."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from brainseg.core.errors import check
from brainseg.data.naming import is_system, printable

FIELDS = {"patient": "[^/]+", "session": "[^/]+", "slice": "[0-9]+"}
DEEPEST = 8  # levels of folders below the source
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

    `pattern.match(path)` returns the fields of a path that fits, None of another; stars that stand
    for something are the field `star`. Raises RequestError for a pattern that cannot work.
    """

    def __init__(self, setting: str, text: str) -> None:
        self.setting, self.text = setting, text
        expression, seen, stars = "", set(), 0
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
                expression += f"(?P={name})" if name in seen else f"(?P<{name}>{FIELDS[name]})"
                seen.add(name)
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
        self.fields, self.stars = seen, stars
        self.literal = sum(len(part) for part in parts if part[:1] not in ("{", "*", "?"))
        self._expression = re.compile(expression)

    def match(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path that fits, None of another."""
        match = self._expression.fullmatch(path)
        return match.groupdict() if match else None


def list_files(source: Path, suffixes: Sequence[str] | None = None) -> list[str]:
    """Return the files below a folder as relative paths, sorted, of these suffixes if given.

    Hidden files and those of operating systems are left out, also the `._` files that macOS packs
    into archives. Links are followed. Folders that cannot be listed raise OSError.
    """
    return sorted(
        path
        for path in _walk(source, "", DEEPEST)
        if suffixes is None or path.lower().endswith(tuple(suffixes))
    )


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    for entry in os.scandir(folder):
        path = prefix + entry.name
        if is_system(entry.name):
            continue
        # Analyze pairs and NIfTI files may be folders by mistake; open_image names those.
        if entry.is_dir():
            if depth:
                yield from _walk(folder / entry.name, path + "/", depth - 1)
        else:
            yield path


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name as written: .nii.gz, .png, or "" where there is none."""
    base = name.rpartition("/")[2]
    suffix = max((end for end in IMAGE_SUFFIXES if base.lower().endswith(end)), key=len, default="")
    return base[len(base) - len(suffix) :] if suffix else Path(base).suffix


def stem_of(name: str) -> str:
    """Return a file's name without its suffix."""
    return name.removesuffix(suffix_of(name))


def summarise_files(paths: Iterable[str], most: int = 4) -> str:
    """Return how many files there are, and the first of them."""
    listed = list(paths)
    if not listed:
        return "no files"
    count = f"{len(listed)} file{'s' if len(listed) > 1 else ''}"
    return f"{count}, such as {', '.join(map(printable, listed[:most]))}"
