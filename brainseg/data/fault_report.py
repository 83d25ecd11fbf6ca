"""Short reports of many faults and names, since 3,929 faults of one kind need no 3,929 lines."""

import re
from collections.abc import Sequence

# Faults of one kind that a report lists.
LINES_PER_KIND = 5
KINDS = 20
NAMES = 20


def summarise_faults(lines: Sequence[str]) -> list[str]:
    """Return the first five lines of each kind, and the number of lines that were left out.

    Lines are of one kind if they differ only in the volume, the file and in numbers. Each line
    begins with the name of its volume. The volumes of a kind are counted, too.
    """
    kinds: dict[str, list[str]] = {}
    for line in lines:
        kinds.setdefault(_kind(line), []).append(line)
    report = []
    for similar in list(kinds.values())[:KINDS]:
        # A single remaining line is printed, because a line that counts it would be no shorter.
        report += similar[:LINES_PER_KIND] if len(similar) > LINES_PER_KIND + 1 else similar
        if len(similar) > LINES_PER_KIND + 1:
            volumes = len({_volume(line) for line in similar})
            report.append(
                f"... and {len(similar) - LINES_PER_KIND:,} more like these, {len(similar):,} in "
                f"{volumes:,} volume{'s' * (volumes > 1)}"
            )
    if len(kinds) > KINDS:
        hidden = sum(len(similar) for similar in list(kinds.values())[KINDS:])
        report.append(f"... and {hidden:,} of {len(kinds) - KINDS} other kinds")
    return report


def enumerate_names(names: Sequence[str]) -> str:
    """Return the first twenty names separated by commas, and the number of the remaining names."""
    return ", ".join(names[:NAMES]) + (
        f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    )


def _volume(line: str) -> str:
    """Return the name of a line's volume, which ends at a slash or at a colon with a space."""
    return re.split(r"/|: ", line, maxsplit=1)[0]


def _kind(line: str) -> str:
    """Return the text of a line without the path, the name of the volume and numbers."""
    place, _, text = line.partition(": ")
    name = rf"(?<![^\W_]){re.escape(_volume(line))}(?![^\W_])"
    return re.sub(r"[0-9]+", "0", re.sub(name, "", text or place))
