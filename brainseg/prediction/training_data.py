"""The data that a checkpoint was trained on: where they lie today, and which data a request therefore means."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.config import DataConfig, DataOverride, PhantomConfig, TrainConfig
from brainseg.core.errors import check
from brainseg.core.places import relocated_path
from brainseg.data.store import Store, is_store
from brainseg.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from brainseg.prediction.trained_model import TrainedModel


def training_file(checkpoint: Path, stored: Mapping[str, Any], config: TrainConfig) -> Path | None:
    """Return the file of the training data, or None if no file is at any of the places stored for it.

    The places are those stored in the checkpoint and in the `run.json` of its run folder, before them the same
    places seen from a run folder that was moved or copied, and `data.path` as it was typed. A file with the
    fingerprint of the training data wins over one that has only the place.
    """
    places = [Path(stored["data_path"])] if "data_path" in stored else []
    run = RunFolder(checkpoint.parent.parent)
    if run.exists:
        facts = run.facts
        places += [Path(facts["data"]["path"])]
        places = [*(relocated_path(place, run.path, facts) for place in places), *places]
    places += [Path(config.data.path)] if config.data.path is not None else []
    files = [place for place in dict.fromkeys(places) if place.is_file() and is_store(place)]
    same = (file for file in files if _fingerprint(file) == stored.get("fingerprint"))
    return next(same, files[0] if files else None)


def _fingerprint(file: Path) -> str:
    with Store(file) as store:
        return store.fingerprint


def chosen_data(asked: DataOverride, members: Sequence["TrainedModel"]) -> DataConfig:
    """Return the data that a request means: those named by it, else those that the checkpoints were trained on.

    `data.path`, `data.name` or a setting of the phantom names other data. Raises RequestError where the data of
    a checkpoint are not there, where the checkpoints were trained on different data, and where none of them
    says which data it was trained on.
    """
    requested = {
        name: value for name, value in dataclasses.asdict(asked).items() if value is not None
    }
    phantom = {
        name: value for name, value in requested.pop("phantom", {}).items() if value is not None
    }
    known = [member for member in members if member.config is not None]
    own = [member.config.data for member in known if member.config is not None]
    if not (phantom or {"name", "path"} & requested.keys()):
        rule = f"{members[0].name} does not say which data it was trained on"
        check(bool(own), "data.path", "null", rule, "give data.path=FILE, or data=phantom")
        _check_same(known)
        limits = {data.limit_patients for data in own}
        limit = {"limit_patients": limits.pop() if len(limits) == 1 else None}
        return _training_data(known[0], own[0], {**limit, **requested})
    synthetic = next((data.phantom for data in own if data.path is None), PhantomConfig())
    return DataConfig(**requested, phantom=dataclasses.replace(synthetic, **phantom))


def _training_data(
    member: "TrainedModel", own: DataConfig, requested: dict[str, Any]
) -> DataConfig:
    """Return the data of one checkpoint, at the place where they lie today. Raises RequestError."""
    file = member.training_file
    if own.path is None:
        # A phantom that is gone is made again, from its settings.
        folder = str(file.parent) if file is not None else own.phantom.folder
        return DataConfig(phantom=dataclasses.replace(own.phantom, folder=folder), **requested)
    place = member.stored.get("data_path", own.path)
    rule = f"{member.name} was trained on {place}, which is not there"
    check(file is not None, "data.path", "null", rule, "give data.path=FILE")
    return DataConfig(name=own.name, path=str(file), **requested)


def _check_same(members: Sequence["TrainedModel"]) -> None:
    """Refuse checkpoints of different training data, of which none is the obvious choice. Raises RequestError."""
    of_data = {str(member.stored.get("fingerprint")): member.name for member in members}
    rule = f"the checkpoints were trained on different data: {', '.join(of_data.values())}"
    check(len(of_data) == 1, "data.path", "null", rule, "give data.path=FILE")
