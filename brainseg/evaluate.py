"""Score a checkpoint on the patients of a file, by the same code as validation and test while training.

    python -m brainseg.evaluate checkpoint=runs/NAME/checkpoints/best.pt data.path=lgg.h5
    python -m brainseg.evaluate checkpoint=weights.pt model.depth=4 model.width=32 model.growth=1 data.path=lgg.h5 split=all

It writes patients.csv, slices.csv, summary.json and pictures/overlays.png to `output`. Each patient carries its role in the split that the
checkpoint was trained under; scores are summarised by role, never pooled.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from brainseg import build, cli
from brainseg.config import EvaluateConfig, InferenceConfig, restore
from brainseg.data.cohort import open_store, outline
from brainseg.data.dataset import MRIDataset
from brainseg.data.split import Split, draw
from brainseg.data.store import Store
from brainseg.device import choose
from brainseg.errors import check as require
from brainseg.records import checkpoint, report
from brainseg.records.results import Results
from brainseg.training.evaluation import evaluate


def run(config: EvaluateConfig) -> int:
    """Evaluate, write and print; returns the exit code 0."""
    device = choose(config.device)
    stored = checkpoint.load_weights(_path(config.checkpoint))
    store = open_store(config.data)
    trained = Split.from_dict(stored["split"]) if "split" in stored else None
    patients = outline(config.data).patients
    dataset = _dataset(config, stored, store, _chosen(config, trained, patients))
    model = device.place(_model(config, stored, dataset))
    inference = _inference(config, stored)

    named = zip(store.volumes, store.patients, strict=True)
    roles = {volume: trained.role(patient) if trained else "unknown" for volume, patient in named}
    results = Results(dataset, config.predictions)
    results.add(evaluate(model, dataset, inference, device, config.batch_size, _criterion(stored)), roles)
    facts = {
        "checkpoint": str(config.checkpoint),
        "uid": stored.get("uid"),
        "inference": dataclasses.asdict(inference),
        "device": device.got,
        "data": {"path": str(store.path), "fingerprint": store.fingerprint},
        "leaky": bool(trained and trained.leaky),
    }
    metrics = results.write(Path(config.output), facts, config.overlays)
    counts = ", ".join(f"{sum(role == its for _, its in results.rows)} {role}" for role in dict.fromkeys(role for _, role in results.rows))
    print(report.table(metrics, f"{len(results.rows)} patients by their role in training: {counts}"))
    print(f"written to {config.output}: patients.csv, slices.csv, summary.json" + (", pictures/overlays.png" if config.overlays else ""))
    return 0


def _chosen(config: EvaluateConfig, trained: Split | None, patients: list[str]) -> list[str]:
    """The patients evaluated: `parts` of the split asked for, or of the one that the checkpoint was trained under."""
    split = draw(config.split, patients) if config.split is not None else trained
    require(split is not None, "split", "null", "the checkpoint carries no split", "say which patients, as split=all")
    assert split is not None
    names = [name for part in config.parts for name in getattr(split, part) if name in set(patients)]
    require(bool(names), "parts", ",".join(config.parts), f"no patient of {config.data.path or 'the phantom'} is in these parts",
            "choose other parts, or split=all")
    return names


def _dataset(config: EvaluateConfig, stored: Mapping[str, Any], store: Store, patients: list[str]) -> MRIDataset:
    """The slices as the checkpoint saw them: its own channels and context, else those of the request."""
    data = restore(stored["config"]).data if "config" in stored else config.data
    return MRIDataset(store, patients=patients, volume=data.volume, context=data.context)


def _model(config: EvaluateConfig, stored: Mapping[str, Any], dataset: MRIDataset) -> nn.Module:
    """The network with the checkpoint's weights. Raises RequestError if they are those of another network."""
    settings = restore(stored["config"]).model if "config" in stored else config.model
    channels = len(stored["classes"]) if len(stored.get("classes", ())) > 2 else 1
    model = build.model(settings, dataset.channels, channels, dataset.size)
    try:
        model.load_state_dict(stored["model"])
    except RuntimeError as error:  # torch lists every key that does not fit, over many lines
        require(False, "checkpoint", config.checkpoint, f"its weights are not those of model={dataclasses.asdict(settings)}",
                f"set model.* as it was trained ({str(error).splitlines()[1].strip()[:160]})")
    return model


def _inference(config: EvaluateConfig, stored: Mapping[str, Any]) -> InferenceConfig:
    """The checkpoint's inference settings, with what the request says otherwise."""
    own = restore(stored["config"]).inference if "config" in stored else InferenceConfig()
    asked = {name: value for name, value in dataclasses.asdict(config.inference).items() if value is not None}
    return dataclasses.replace(own, **asked)


def _criterion(stored: Mapping[str, Any]) -> nn.Module | None:
    return build.loss(restore(stored["config"]).loss) if "config" in stored else None


def _path(name: str) -> Path:
    """The file that a checkpoint's name means: a path, runs:/ID or models:/NAME@ALIAS."""
    if name.startswith(("runs:/", "models:/")):
        from brainseg.records.tracking import checkpoint_of

        return checkpoint_of(name)
    path = Path(name)
    return path / "checkpoints" / "best.pt" if (path / "run.json").is_file() else path


def check(config: EvaluateConfig) -> None:
    """All that can be refused before anything is created or read in full. Raises RequestError."""
    choose(config.device)
    outline(config.data)
    if not config.checkpoint.startswith(("runs:/", "models:/")):
        path = _path(config.checkpoint)
        remedy = "give a checkpoint, a run folder, runs:/ID or models:/NAME@ALIAS"
        require(path.is_file(), "checkpoint", config.checkpoint, "no such file", remedy)


def main() -> None:
    """Entry point of `python -m brainseg.evaluate` and `brainseg evaluate`."""
    cli.main("evaluate", run, check)


if __name__ == "__main__":
    main()
