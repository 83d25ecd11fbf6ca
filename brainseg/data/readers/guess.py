"""Patterns of file names guessed from their last words, such as flair of P1_flair.nii.gz."""

import re
from collections import Counter
from collections.abc import Sequence

from brainseg.data.readers.patterns import stem_of

SEQUENCES = {
    "FLAIR": ("flair", "t2f", "t2flair", "fla"),
    "T1": ("t1", "t1n", "t1w", "t1pre", "pre"),
    "T1c": ("t1c", "t1ce", "t1gd", "t1post", "post", "t1wce"),
    "T2": ("t2", "t2w"),
}
MASKS = (
    "seg",
    "mask",
    "label",
    "labels",
    "lesion",
    "tumor",
    "tumour",
    "roi",
    "segmentation",
    "gt",
    "gtv",
    "dseg",
)
NAMES = {word: name for name, words in SEQUENCES.items() for word in words}


def sequence_of(word: str) -> str | None:
    """Return the sequence that a word such as t1ce or T2-FLAIR means, None for another word."""
    return NAMES.get(re.sub(r"[^a-z0-9]", "", word.lower()))


def last_word(name: str) -> str:
    """Return the last word of a file's name in lower case, flair for P1_T2-flair.nii.gz."""
    return re.split(r"[_\-. ]", stem_of(name).lower())[-1]


def guess_patterns(
    paths: Sequence[str], needs_mask: bool = True
) -> tuple[dict[str, str], str | None]:
    """Return a pattern per sequence, and the pattern of the masks or None.

    `paths` are relative to the source. Each sequence gets its most frequent pattern. Without masks,
    no sequence is returned unless `needs_mask` is False.
    """
    patterns: dict[str, Counter[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        word = last_word(name)
        key = "mask" if word in MASKS else NAMES.get(word)
        # A pattern covers files in the source or in a folder per patient, but no deeper ones.
        if key is None or "/" in folder:
            continue
        stem = stem_of(name)
        prefix = stem[: len(stem) - len(word)]
        # The star stands for the patient, and the sign before the last word is part of the pattern.
        text = ("*" + prefix[-1] if prefix else "") + name[len(prefix) :]
        patterns.setdefault(key, Counter())[text] += 1
    best = {key: counts.most_common(1)[0][0] for key, counts in patterns.items()}
    mask = best.pop("mask", None)
    if needs_mask and not mask:
        return {}, None
    return {name: best[name] for name in SEQUENCES if name in best}, mask
