"""The initial weights of a fine-tuned run: where they come from, and whose scans they have seen.

A source that was trained or selected on held-out patients makes their scores too good. Checkpoints
store the signatures of their scans, so that a patient is recognised in other data and under another
name. The signatures of the source, and of the source's own source, are stored with the run.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from brainseg.core.errors import DataError, check
from brainseg.data.signatures import is_scan_of
from brainseg.data.split import Split
from brainseg.data.store import SliceStore
from brainseg.reports import tables
from brainseg.runs import checkpoint
from brainseg.runs.find import CHECKPOINT_FORMS, resolve_checkpoint, suggest_path
from brainseg.training.context import TrainingContext
from brainseg.training.state import State
from brainseg.training.transfer import FittedWeights, fit_weights, load_fitted_weights

log = logging.getLogger("brainseg")


@dataclass(frozen=True)
class InitialWeights:
    """The source of a run's initial weights."""

    name: str
    weights: Mapping[str, Tensor]
    # SHA-256 of the weights with their names and shapes.
    sha256: str
    # Channels of the network's input, None if unknown.
    in_channels: int | None
    # The MRI sequences, none if unknown.
    sequences: tuple[str, ...]
    # Signatures of the scans that the weights were trained on, those of earlier sources included.
    trained: frozenset[str]
    # Signatures of the scans by which an epoch was selected.
    selected: frozenset[str]
    # False if the weights, or weights from which they began, do not store their scans.
    is_complete: bool
    # The split and the data of the training, None if unknown.
    split: Split | None
    fingerprint: str | None

    def fit(self, network: nn.Module, channels: int) -> FittedWeights:
        """Return the weights that fit `network`, which takes `channels` input channels.

        Raises RequestError if none fits.
        """
        fitted = fit_weights(self.weights, network.state_dict(), channels, self.in_channels)
        rule = "none of its weights fits the network by name and shape"
        remedy = "set model.* as in its training, or an encoder that has the names of its layers"
        check(fitted.has_filters, "initial", self.name, rule, remedy)
        return fitted

    def check_leaks(self, store: SliceStore, split: Split, is_allowed: bool) -> bool:
        """Return True if the weights have seen held-out patients of `split`.

        These are test patients that the weights were trained or selected on, and validation
        patients that they were trained on. Raises RequestError unless that `is_allowed`.
        """
        scans = dict.fromkeys(split.validation, self.trained)
        scans |= dict.fromkeys(split.test, self.trained | self.selected)
        leaks = {
            patient
            for index, patient in enumerate(store.patients)
            if patient in scans and is_scan_of(store, index, scans[patient])
        }
        # Earlier versions stored no signatures. On the same data names are as good.
        leaks |= self.equal_names(split) if self.fingerprint == store.fingerprint else set()
        check(
            not leaks or is_allowed,
            "initial",
            self.name,
            f"was trained or selected on {len(leaks)} of the {len(scans)} validation and test "
            f"patients of this run, such as {', '.join(sorted(leaks)[:3])}",
            "use the split of that run (split=file split.path=RUN/split.json), or add leaky=true, "
            "which marks all scores as leaky",
        )
        return bool(leaks)

    def equal_names(self, split: Split) -> set[str]:
        """Return the held-out patients of `split` with names of patients that the weights saw."""
        if self.split is None:
            return set()
        role = self.split.role
        return {name for name in split.test if role(name) in ("train", "validation")} | {
            name for name in split.validation if role(name) == "train"
        }


def load_initial(name: str | None) -> InitialWeights | None:
    """Read the weights that the setting `initial` names, or return None without that setting.

    The name is a run folder, a file, runs:/ID or models:/NAME@ALIAS. Raises RequestError if there
    is no such file, DataError if it is damaged.
    """
    if name is None:
        return None
    path = resolve_checkpoint(name)
    remedy = suggest_path(Path(name)) or CHECKPOINT_FORMS
    check(path.is_file(), "initial", name, "no such file", remedy)
    stored = checkpoint.load_weights(path)
    earlier, signatures = stored.get("initial", {}), stored.get("signatures", {})
    split = Split.from_dict(stored["split"]) if "split" in stored else None
    train, validation = (split.train, split.validation) if split is not None else ((), ())
    trained, selected = (
        frozenset(scan for patient in part for scan in _texts(path, signatures.get(patient, [])))
        for part in (train, validation)
    )
    try:
        digest = checkpoint.hash_content(stored["model"])
    except ValueError as error:
        raise DataError(f"checkpoint={path}: {error}; save plain tensors") from error
    return InitialWeights(
        name,
        stored["model"],
        digest,
        stored.get("in_channels"),
        tuple(map(str, stored.get("channels", ()))),
        trained | frozenset(_texts(path, earlier.get("trained", []))),
        selected | frozenset(_texts(path, earlier.get("selected", []))),
        bool(trained) and earlier.get("is_complete", True) is True,
        split,
        stored.get("fingerprint"),
    )


def initialise(
    state: State, task: TrainingContext, source: InitialWeights, is_leaky: bool
) -> dict[str, Any]:
    """Load the initial weights into a new state, and return what run.json stores of them."""
    fitted = source.fit(state.model, task.train.channels)
    load_fitted_weights(state, fitted)
    return {
        "name": source.name,
        "sha256": source.sha256,
        "leaky": is_leaky,
        "loaded": len(fitted.weights),
        "adapted": fitted.adapted,
        "missing": fitted.missing,
        "unused": fitted.unused,
        "is_complete": source.is_complete,
        "trained": sorted(source.trained),
        "selected": sorted(source.selected),
    }


def log_initial(
    source: InitialWeights, facts: Mapping[str, Any], task: TrainingContext, split: Split
) -> None:
    """Log what was loaded, what was not, and what is unknown about the source's patients."""
    log.info(
        "initial:      %d of %d tensors of %s",
        facts["loaded"],
        facts["loaded"] + len(facts["missing"]),
        source.name,
    )
    for meaning, names in (
        ("input channels repeated", facts["adapted"]),
        ("random, not in the source", facts["missing"]),
        ("not used of the source", facts["unused"]),
    ):
        if names:
            log.info("              %s: %s", meaning, ", ".join(names))
    sequences = tuple(task.train.sequences)
    if source.sequences and source.sequences != sequences:
        log.info(
            "              trained on the sequences %s, now %s",
            ", ".join(source.sequences),
            ", ".join(sequences),
        )
    if facts["leaky"]:
        log.warning("LEAKY:        the initial weights have seen held-out patients of this run")
    elif names := sorted(source.equal_names(split)):
        log.warning(
            "note:         %s (such as %s) also named in the training of %s, with other scans; "
            "make sure that these are other patients",
            tables.format_count(len(names), "held-out patient"),
            names[0],
            source.name,
        )
    if not source.is_complete:
        log.warning(
            "note:         %s does not store which patients it was trained on; make sure that no "
            "validation or test patient is among them",
            source.name,
        )


def _texts(path: Path, values: Any) -> Iterable[str]:
    """Return a list of text. Raises DataError for anything else, as in an edited checkpoint."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"checkpoint={path}: not what brainseg writes; use another checkpoint")
    return values
