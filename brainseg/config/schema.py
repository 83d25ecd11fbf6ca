"""The settings as Hydra knows them, and a stored config as the settings it was."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, cast, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainseg.config.commands import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PrepareConfig,
    RegisterConfig,
    SearchConfig,
)
from brainseg.config.data import FileSplitConfig, HoldoutConfig, KFoldConfig, SplitConfig
from brainseg.config.model import ModelConfig, UNetConfig
from brainseg.config.scheduler import (
    CosineConfig,
    OneCycleConfig,
    PlateauConfig,
    SchedulerConfig,
    StepConfig,
)
from brainseg.config.train import TrainConfig
from brainseg.core.errors import RequestError, check

CHOICES: dict[str, dict[str, type]] = {
    "split": {
        "holdout": HoldoutConfig,
        "kfold": KFoldConfig,
        "file": FileSplitConfig,
        "any": SplitConfig,
    },
    "model": {"unet": UNetConfig, "any": ModelConfig},
    "scheduler": {
        "any": SchedulerConfig,
        "none": SchedulerConfig,
        "step": StepConfig,
        "cosine": CosineConfig,
        "one_cycle": OneCycleConfig,
        "plateau": PlateauConfig,
    },
}
TYPES: dict[str, type] = {
    "train": TrainConfig,
    "search": SearchConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "compare": CompareConfig,
    "register": RegisterConfig,
    "export": ExportConfig,
}


@cache
def register_schema() -> None:
    """Give Hydra the schemas: conf/<command>.yaml starts from `schema/<command>`, a choice from `schema/<group>/<choice>`."""
    store = ConfigStore.instance()
    for command, node in TYPES.items():
        store.store(group="schema", name=command, node=node, package="_global_")
    for group, nodes in CHOICES.items():
        for name, node in nodes.items():
            store.store(group=f"schema/{group}", name=name, node=node)


def check_chosen(config: Any) -> None:
    """Refuse a choice made by its name alone, as scheduler.name=step: its other settings are still those of another choice.

    Raises RequestError.
    """
    for group, nodes in CHOICES.items():
        node = getattr(config, group, None)
        if node is not None:
            fits = type(node) is nodes.get(node.name, nodes["any"])
            rule = f"the settings of {group} are those of another choice"
            named = (
                f"{group}={node.name}"
                if node.name in nodes or group != "model"
                else f"model=monai model.name={node.name}"
            )
            check(fits, f"{group}.name", node.name, rule, f"choose it as {named}")


def group_of(hint: Any) -> type | None:
    """Return the dataclass that a field's type is or may be, or None if the field is no group of settings."""
    return next(
        (kind for kind in (hint, *get_args(hint)) if is_dataclass(kind) and isinstance(kind, type)),
        None,
    )


def hints(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each dotted setting below a dataclass and its type, the settings of a group's further choices included."""
    for name, hint in get_type_hints(kind).items():
        if group := group_of(hint):
            for choice in dict.fromkeys([group, *CHOICES.get(name, {}).values()]):
                yield from hints(choice, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted name: value}; lists stay values, an empty dict vanishes."""
    if not isinstance(settings, dict):
        return {prefix[:-1]: settings}
    return {
        name: leaf
        for key, value in settings.items()
        for name, leaf in flatten(value, f"{prefix}{key}.").items()
    }


def restore(stored: Any) -> TrainConfig:
    """The dataclass of a config stored as plain containers, in a run's folder or a checkpoint; every check runs again.

    Raises RequestError in one line if it is no such config: it may come from a file that nobody vouches for.
    """
    rule = "not what brainseg.train stores"
    check(isinstance(stored, dict), "config", type(stored).__name__, rule)
    text = repr(stored)
    check(
        "${" not in text and "_target_" not in text,
        "config",
        "a reference or _target_ is in it",
        rule,
    )  # resolved when it was stored
    try:
        base = OmegaConf.structured(TrainConfig)
        for group, nodes in CHOICES.items():
            name = stored.get(group, {}).get("name")
            OmegaConf.update(
                base, group, OmegaConf.structured(nodes.get(name, nodes["any"])), merge=False
            )
        return cast(TrainConfig, OmegaConf.to_object(OmegaConf.merge(base, stored)))
    except (
        OmegaConfBaseException,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:  # what OmegaConf raises for other shapes and types
        raise RequestError(f"config: {rule} ({str(error).splitlines()[0][:200]})") from error
