"""Patient-level splits: drawn once from (sorted names, split.seed), hashed, stored beside the run, checked at each use.

Two volumes of one patient are never parted. Patients are shuffled within their institution (the second part of
TCGA_<institution>_<number>) and dealt out so that each institution is spread evenly over the parts.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.config import FileSplitConfig, HoldoutConfig, KFoldConfig, SplitConfig
from brainseg.core.errors import RequestError, check

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Patients of each part, sorted by name. `leaky` marks parts that share patients (the reference's draw)."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    leaky: bool = False

    @property
    def sha256(self) -> str:
        """Identifies who is in which part, however it was drawn."""
        return hashlib.sha256(
            json.dumps([self.train, self.validation, self.test]).encode()
        ).hexdigest()

    def role(self, patient: str) -> str:
        """The part a patient is in: train before validation before test, `unknown` if in none."""
        return next((part for part in PARTS if patient in getattr(self, part)), "unknown")

    def verify(self, patients: Sequence[str] | None = None) -> "Split":
        """Return self if no patient is in two parts and, when `patients` is given, each of those is in one.

        Raises RequestError naming the patients. The reference's draw, whose parts overlap by design, is excepted.
        """
        named = [*self.train, *self.validation, *self.test]
        twice = sorted(patient for patient, count in Counter(named).items() if count > 1)
        check(
            self.leaky or not twice,
            f"split={self.name}",
            _some(twice),
            "patients in more than one part",
            "one part each",
        )
        if patients is not None:
            missing, foreign = (
                sorted(set(patients) - set(named)),
                sorted(set(named) - set(patients)),
            )
            check(
                self.leaky or not missing,
                f"split={self.name}",
                _some(missing),
                "patients of the data are in no part",
                "add them",
            )
            check(
                not foreign,
                f"split={self.name}",
                _some(foreign),
                "patients are not in the data",
                "remove them",
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """For split.json and the checkpoint: plain lists."""
        plain = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {**plain, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Split":
        """The inverse of `as_dict`; raises RequestError if the names do not have the stored hash."""
        try:
            train, validation, test = (tuple(stored[part]) for part in PARTS)
            split = cls(stored["name"], train, validation, test, bool(stored.get("leaky", False)))
            digest, own = str(stored["sha256"]), split.sha256
        except (KeyError, TypeError) as error:
            raise RequestError(
                f"split: not what a run stores ({type(error).__name__}: {error})"
            ) from error
        check(
            own == digest,
            "split",
            digest[:10],
            "the stored names do not have this hash; it was edited",
        )
        check(
            not split.leaky or split.name == "reference",
            "split",
            split.name,
            "only the reference's draw may be leaky; it was edited",
        )
        return split.verify()


def make_split(config: SplitConfig, patients: Sequence[str]) -> Split:
    """The split that `config` asks for over `patients` (names without dates, any order, repeats allowed).

    Depends on the set of names and `split.seed` alone. Raises RequestError if the cohort is too small or a file is wrong.
    """
    names = sorted(set(patients))
    if isinstance(config, HoldoutConfig):
        split = _holdout(config, names)
    elif isinstance(config, KFoldConfig):
        split = _kfold(config, names)
    elif isinstance(config, FileSplitConfig):
        split = _from_file(Path(config.path))
    elif config.name == "all":
        split = Split("all", (), (), tuple(names))
    elif config.name == "reference":
        split = _reference(names)
    else:
        raise RequestError(
            f"split.name={config.name}: choose it as split={config.name}, which brings the settings it needs"
        )
    return split.verify(names)


def _shuffled_institutions(names: list[str], seed: int) -> list[list[str]]:
    """Names as `case_001` have no institution: where each patient would be its own, all are shuffled together."""
    generator = np.random.default_rng(seed)
    institutions = [
        list(group)
        for _, group in groupby(sorted(names, key=lambda n: (_institution(n), n)), key=_institution)
    ]
    if len(institutions) == len(names):
        institutions = [names]
    return [[str(name) for name in generator.permutation(group)] for group in institutions]


def _institution(name: str) -> str:
    parts = name.split("_")
    return parts[1] if len(parts) > 1 else ""


def _kfold(config: KFoldConfig, names: list[str]) -> Split:
    """One counter goes on over all institutions, so fold sizes and each institution's share differ by at most one."""
    rule = f"the cohort has {len(names)} patients; at least {config.folds} are needed"
    check(len(names) >= config.folds, "split.folds", config.folds, rule, "lower split.folds")
    folds: list[list[str]] = [[] for _ in range(config.folds)]
    for counter, name in enumerate(
        name for group in _shuffled_institutions(names, config.seed) for name in group
    ):
        folds[counter % config.folds].append(name)
    validation = (config.fold + 1) % config.folds
    train = [
        name
        for fold, members in enumerate(folds)
        for name in members
        if fold not in (config.fold, validation)
    ]
    return Split("kfold", _sorted(train), _sorted(folds[validation]), _sorted(folds[config.fold]))


def _holdout(config: HoldoutConfig, names: list[str]) -> Split:
    """Each institution gives every part its share rounded down; who is over goes to the parts that lag most so far."""
    shares = np.array([config.train, config.validation, config.test])
    check(
        config.train > 0 and config.validation > 0,
        "split.train, split.validation",
        f"{config.train}, {config.validation}",
        "training and validation need patients",
    )
    # Every part is within one of its share: with a share of one patient or more none is empty, whatever the institutions.
    least = math.ceil(1 / shares[shares > 0].min() - 1e-9)
    rule = f"{len(names)} patients; at least {least} are needed for the smallest part to have one"
    check(len(names) >= least, "split", "holdout", rule, "use more patients or other shares")
    members: list[list[str]] = [[], [], []]
    seen = 0
    for group in _shuffled_institutions(names, config.seed):
        seen += len(group)
        counts = np.floor(shares * len(group) + 1e-9).astype(int)
        lag = shares * seen - [len(part) for part in members] - counts
        lag[
            shares * len(group) - counts < 1e-9
        ] = -math.inf  # a part whose share came out even takes no extra
        counts[np.argsort(-lag, kind="stable")[: len(group) - counts.sum()]] += 1
        for part, start, count in zip(members, np.cumsum(counts) - counts, counts, strict=True):
            part.extend(group[start : start + count])
    train, validation, test = (_sorted(part) for part in members)
    return Split("holdout", train, validation, test)


def _from_file(path: Path) -> Split:
    check(
        path.is_file(),
        "split.path",
        path,
        "no such file",
        "give a JSON file with the lists train, validation, test",
    )
    try:
        stored = json.loads(path.read_text())
        train, validation, test = (_sorted(stored.get(part, [])) for part in PARTS)
    except (ValueError, AttributeError, TypeError) as error:
        raise RequestError(
            f"split.path={path}: must be a JSON object with lists of names train, validation, test ({error})"
        ) from error
    check(
        bool(train) and bool(validation),
        "split.path",
        path,
        "training and validation need patients",
    )
    return Split("file", train, validation, test)


def _reference(names: list[str]) -> Split:
    """The reference's own draw: both parts come from the whole cohort, so most validation patients were trained on."""
    train, validation = (
        np.random.default_rng(42).choice(
            names, size=int(share * len(names)), replace=False, shuffle=False
        )
        for share in (0.8, 0.2)
    )
    check(
        len(validation) > 0,
        "split",
        "reference",
        f"{len(names)} patients; at least 5 are needed",
        "use more patients",
    )
    return Split("reference", _sorted(train), _sorted(validation), (), leaky=True)


def _sorted(names: Any) -> tuple[str, ...]:
    return tuple(sorted(str(name) for name in names))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
