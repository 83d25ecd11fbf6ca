"""Patient-level splits, which are hashed, stored in the run folder and checked at each use.

A split is drawn once from (sorted names, split.seed). All volumes of a patient are in one part.
Patients are shuffled within their institution, the second part of TCGA_<institution>_<number>. They
are assigned so that each institution is spread evenly over the parts.
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
    """Patients of each part, sorted by name.

    `leaky` marks a split whose parts share patients, as in the reference implementation.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    leaky: bool = False

    @property
    def sha256(self) -> str:
        """Return the hash of the parts, which does not depend on how the patients were drawn."""
        return hashlib.sha256(
            json.dumps([self.train, self.validation, self.test]).encode()
        ).hexdigest()

    def role(self, patient: str) -> str:
        """Return the part of a patient, or `unknown` if the patient is in no part.

        Of several parts train comes before validation, and validation before test.
        """
        return next((part for part in PARTS if patient in getattr(self, part)), "unknown")

    def verify(self, patients: Sequence[str] | None = None) -> "Split":
        """Return self if no patient is in two parts, and if each of `patients` is in a part.

        Raises RequestError naming the patients otherwise. A leaky split, whose parts overlap by
        design, is exempt from both rules. Patients of the split that are not in `patients` are an
        error for every split.
        """
        named = [*self.train, *self.validation, *self.test]
        repeated = sorted(patient for patient, count in Counter(named).items() if count > 1)
        check(
            self.leaky or not repeated,
            f"split={self.name}",
            _list_names(repeated),
            "patients in more than one part",
            "put each patient in one part",
        )
        if patients is not None:
            missing, foreign = (
                sorted(set(patients) - set(named)),
                sorted(set(named) - set(patients)),
            )
            check(
                self.leaky or not missing,
                f"split={self.name}",
                _list_names(missing),
                "patients of the data are in no part",
                "add them to a part, or set split.unlisted=leave_out to use none of them",
            )
            check(
                not foreign,
                f"split={self.name}",
                _list_names(foreign),
                "patients are not in the data",
                "remove them from the split",
            )
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return the split with lists instead of tuples, for split.json and the checkpoint."""
        plain = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {**plain, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Split":
        """Return the split that `as_dict` stored.

        Raises RequestError if the names do not have the stored hash.
        """
        try:
            train, validation, test = (tuple(stored[part]) for part in PARTS)
            split = cls(stored["name"], train, validation, test, bool(stored.get("leaky", False)))
            stored_hash = str(stored["sha256"])
        except (KeyError, TypeError) as error:
            raise RequestError(
                f"split: not a split that a run stored ({type(error).__name__}: {error})"
            ) from error
        check(
            split.sha256 == stored_hash,
            "split",
            stored_hash[:10],
            "the stored names do not have this hash, so the split was edited",
        )
        check(
            not split.leaky or split.name == "reference",
            "split",
            split.name,
            "only split=reference may be leaky, so the split was edited",
        )
        return split.verify()


def make_split(config: SplitConfig, patients: Sequence[str]) -> Split:
    """Return the split of `patients` that `config` describes.

    `patients` are names without dates, in any order and with repeats. The split depends on the set
    of names and `split.seed` alone. Raises RequestError if the cohort is too small or a file is
    wrong.
    """
    names = sorted(set(patients))
    if isinstance(config, HoldoutConfig):
        split = _holdout(config, names)
    elif isinstance(config, KFoldConfig):
        split = _kfold(config, names)
    elif isinstance(config, FileSplitConfig):
        split = _from_file(Path(config.path))
        if config.unlisted == "leave_out":
            listed = {*split.train, *split.validation, *split.test}
            names = [name for name in names if name in listed]
    elif config.name == "all":
        split = Split("all", (), (), tuple(names))
    elif config.name == "reference":
        split = _reference(names)
    else:
        raise RequestError(
            f"split.name={config.name}: the name alone lacks the settings of this split; "
            f"set split={config.name} instead"
        )
    return split.verify(names)


def _shuffled_institutions(names: list[str], seed: int) -> list[list[str]]:
    """Return the patients of each institution in random order.

    Names such as `case_001` contain no institution. If every patient would be an institution of one
    patient, all patients are shuffled as one institution.
    """
    generator = np.random.default_rng(seed)
    institutions = [
        list(group)
        for _, group in groupby(sorted(names, key=lambda n: (_institution(n), n)), key=_institution)
    ]
    if len(institutions) == len(names):
        institutions = [names]
    return [[str(name) for name in generator.permutation(group)] for group in institutions]


def _institution(name: str) -> str:
    """Return the second part of a patient's name, or "" for a name of one part."""
    parts = name.split("_")
    return parts[1] if len(parts) > 1 else ""


def _kfold(config: KFoldConfig, names: list[str]) -> Split:
    """Return the split of `config.fold`, with the next fold for validation unless it is `none`.

    One counter runs over all institutions. The sizes of the folds, and the patients of each
    institution in them, therefore differ by at most one.
    """
    rule = f"the cohort has {len(names)} patients; at least {config.folds} are needed"
    check(len(names) >= config.folds, "split.folds", config.folds, rule, "lower split.folds")
    folds: list[list[str]] = [[] for _ in range(config.folds)]
    for counter, name in enumerate(
        name for group in _shuffled_institutions(names, config.seed) for name in group
    ):
        folds[counter % config.folds].append(name)
    test = folds[config.fold]
    validation = folds[(config.fold + 1) % config.folds] if config.validation == "next" else []
    held_out = {*validation, *test}
    train = [name for members in folds for name in members if name not in held_out]
    return Split("kfold", _sort_names(train), _sort_names(validation), _sort_names(test))


def _holdout(config: HoldoutConfig, names: list[str]) -> Split:
    """Return a split with the shares of `config` within each institution.

    Every part gets its share of the institution's patients, rounded down. Each remaining patient
    goes to the part that is furthest below its share so far.
    """
    shares = np.array([config.train, config.validation, config.test])
    check(config.train > 0, "split.train", config.train, "training needs patients")
    # The size of every part differs from its share by less than one patient. A part whose share is
    # one patient or more is therefore never empty, for any distribution over institutions.
    minimum = math.ceil(1 / shares[shares > 0].min() - 1e-9)
    rule = f"{len(names)} patients; at least {minimum} are needed to have one in each part"
    check(len(names) >= minimum, "split", "holdout", rule, "use more patients or other shares")
    members: list[list[str]] = [[], [], []]
    seen = 0
    for group in _shuffled_institutions(names, config.seed):
        seen += len(group)
        counts = np.floor(shares * len(group) + 1e-9).astype(int)
        lag = shares * seen - [len(part) for part in members] - counts
        # A part whose share is a whole number of patients gets no remaining patient.
        lag[shares * len(group) - counts < 1e-9] = -math.inf
        counts[np.argsort(-lag, kind="stable")[: len(group) - counts.sum()]] += 1
        for part, start, count in zip(members, np.cumsum(counts) - counts, counts, strict=True):
            part.extend(group[start : start + count])
    train, validation, test = (_sort_names(part) for part in members)
    return Split("holdout", train, validation, test)


def _from_file(path: Path) -> Split:
    """Return the split of a JSON file with the lists train, validation and test.

    Only `train` is required. Raises RequestError.
    """
    check(
        path.is_file(),
        "split.path",
        path,
        "no such file",
        "give a JSON file with the lists train, validation, test",
    )
    try:
        stored = json.loads(path.read_text("utf-8"))
        train, validation, test = (_sort_names(stored.get(part, [])) for part in PARTS)
    except (ValueError, AttributeError, TypeError) as error:
        raise RequestError(
            f"split.path={path}: must be a JSON object with the lists of names train, validation, "
            f"test ({error})"
        ) from error
    check(bool(train), "split.path", path, "training needs patients")
    return Split("file", train, validation, test)


def _reference(names: list[str]) -> Split:
    """Return the split of the reference implementation.

    Both parts are drawn from all patients, so that most validation patients are in the training
    part, too.
    """
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
    return Split("reference", _sort_names(train), _sort_names(validation), (), leaky=True)


def _sort_names(names: Any) -> tuple[str, ...]:
    """Return the names as text in alphabetical order."""
    return tuple(sorted(str(name) for name in names))


def _list_names(names: list[str]) -> str:
    """Return the first five names and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
