"""The file of a checkpoint's training data, which may have been moved since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brainseg.config import TrainConfig
from brainseg.core.places import relocated_path
from brainseg.data.store import Store, is_store
from brainseg.runs.run_folder import RunFolder


def training_file(checkpoint: Path, stored: Mapping[str, Any], config: TrainConfig) -> Path | None:
    """Return the file of the training data, or None if it is at none of its stored places.

    The candidates are the places stored in the checkpoint and in the `run.json` of its run folder,
    and `data.path` as it was typed. For a run folder that was moved or copied, the same places
    relative to the new folder come first. A file with the fingerprint of the training data is
    preferred to a file with another fingerprint.
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
