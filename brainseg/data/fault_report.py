"""Short reports of many faults and names: 3,929 faults of one kind need no 3,929 lines."""

import re
from collections.abc import Sequence

SHOWN = 5  # faults of a kind
KINDS = 20
NAMES = 20


def summarise(lines: Sequence[str]) -> list[str]:
    """Return the first five lines of each kind, and a line that counts the others and the volumes
    that they are in.

    Lines are of one kind if they differ in the volume, the file and in numbers alone. `lines` begin
    with the volume's name.
    """
    kinds: dict[str, list[str]] = {}
    for line in lines:
        kinds.setdefault(_kind(line), []).append(line)
    report = []
    for alike in list(kinds.values())[:KINDS]:
        report += alike[:SHOWN] if len(alike) > SHOWN + 1 else alike
        if len(alike) > SHOWN + 1:
            volumes = len({_volume(line) for line in alike})
            report.append(
                f"... and {len(alike) - SHOWN:,} more like these, {len(alike):,} in {volumes:,} "
                f"volume{'s' * (volumes > 1)}"
            )
    if len(kinds) > KINDS:
        hidden = sum(len(alike) for alike in list(kinds.values())[KINDS:])
        report.append(f"... and {hidden:,} of {len(kinds) - KINDS} other kinds")
    return report


def enumerate_names(names: Sequence[str]) -> str:
    """Return the names as a list with commas, of which the first twenty are written out."""
    return ", ".join(names[:NAMES]) + (
        f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    )


def _volume(line: str) -> str:
    """Return the name of the volume that a line is about: it is followed by a slash or by a colon
    and a space.
    """
    return re.split(r"/|: ", line, maxsplit=1)[0]


def _kind(line: str) -> str:
    """Return the text of a line without its place, the volume's name and numbers."""
    place, _, text = line.partition(": ")
    name = rf"(?<![^\W_]){re.escape(_volume(line))}(?![^\W_])"
    return re.sub(r"[0-9]+", "0", re.sub(name, "", text or place))
