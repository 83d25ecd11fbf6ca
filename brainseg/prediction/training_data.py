"""The choice of the data that a request for checkpoints refers to.

Which patients of these data a network was trained on is answered in `trained_model.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from brainseg.config import DataConfig, DataOverride, PhantomConfig
from brainseg.core.errors import check
from brainseg.prediction.trained_model import TrainedModel


def chosen_data(override: DataOverride, members: Sequence[TrainedModel]) -> DataConfig:
    """Return the data that a request names, else the data that the checkpoints were trained on.

    A request names data by `data.path`, `data.name` or a setting of the phantom. Raises
    RequestError if the data of a checkpoint do not exist, if the checkpoints were trained on
    different data, or if no checkpoint contains the place of its training data.
    """
    requested = {
        name: value for name, value in dataclasses.asdict(override).items() if value is not None
    }
    phantom = {
        name: value for name, value in requested.pop("phantom", {}).items() if value is not None
    }
    with_config = [member for member in members if member.config is not None]
    configs = [member.config.data for member in with_config if member.config is not None]
    if not (phantom or {"name", "path"} & requested.keys()):
        rule = f"{members[0].name} does not say which data it was trained on"
        check(bool(configs), "data.path", "null", rule, "give data.path=FILE, or data=phantom")
        _check_same_data(with_config)
        # If the members were limited to different numbers of patients, no number is the right one.
        limits = {data.limit_patients for data in configs}
        limit = {"limit_patients": limits.pop() if len(limits) == 1 else None}
        return _training_data(with_config[0], configs[0], {**limit, **requested})
    synthetic = next((data.phantom for data in configs if data.path is None), PhantomConfig())
    return DataConfig(**requested, phantom=dataclasses.replace(synthetic, **phantom))


def _training_data(
    member: TrainedModel, config: DataConfig, requested: dict[str, Any]
) -> DataConfig:
    """Return the training data of one checkpoint at their current place. Raises RequestError."""
    file = member.training_file
    if config.path is None:
        # A phantom that no longer exists is created again from its settings.
        folder = str(file.parent) if file is not None else config.phantom.folder
        return DataConfig(phantom=dataclasses.replace(config.phantom, folder=folder), **requested)
    place = member.stored.get("data_path", config.path)
    rule = f"{member.name} was trained on {place}, which does not exist"
    check(file is not None, "data.path", "null", rule, "give data.path=FILE")
    return DataConfig(name=config.name, path=str(file), **requested)


def _check_same_data(members: Sequence[TrainedModel]) -> None:
    """Raise a RequestError if the checkpoints were trained on different data.

    In that case, no dataset is the obvious choice.
    """
    names = {str(member.stored.get("fingerprint")): member.name for member in members}
    rule = f"the checkpoints were trained on different data: {', '.join(names.values())}"
    check(len(names) == 1, "data.path", "null", rule, "give data.path=FILE")
