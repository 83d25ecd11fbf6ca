"""Turn a finished run into a trained network of the package, with its model card.

    python scripts/package_weights.py runs/RUN --folds runs/F1 runs/F2 --data lgg.h5 [--name lgg]

The run is one of the folds, or one on all patients (`split.train=1 split.validation=0
split.test=0`). The runs after `--folds` have the same recipe on the folds of a cross-validation.
Their test scores are the expected scores of the network. They are pooled, so that the choice of the
run does not flatter it. The weights are stored in float16, which halves the file, together
with the settings, the split and the signatures of the training scans, so that `evaluate` and
`predict` recognise these patients. The paths of this machine are left out. The card is filled from
the scores. Read it, and correct what has changed, before you publish it.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from brainseg.config import restore_config
from brainseg.config.schema import flatten
from brainseg.core.errors import RequestError
from brainseg.core.files import write_text
from brainseg.data.store import Store
from brainseg.evaluation.metrics import count_missed
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports.failures import SEQUENCES, VOLUME, summarise_groups
from brainseg.reports.tables import read_scores
from brainseg.runs import checkpoint
from brainseg.runs.run_folder import RunFolder

FOLDER = Path(__file__).resolve().parents[1] / "brainseg" / "weights"
# What `evaluate`, `predict` and `export` read. The state of the optimizer is left out.
STORED = ("config", "in_channels", "image_size", "channels", "classes", "split", "fingerprint")
LICENCE = "CC BY-NC-SA 4.0 (attribution, non-commercial, share alike)"
# Settings in which the run on all patients may differ from the folds.
MAY_DIFFER = (
    *("output", "split", "predictions", "test", "steps_of", "tracking", "checkpoint"),
    *("pictures", "note", "tags"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--folds", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", default="lgg")
    parser.add_argument("--version", default="1.0")
    options = parser.parse_args()

    content = checkpoint.load(RunFolder(options.run).best)
    folds = [checkpoint.load(RunFolder(fold).best) for fold in options.folds]
    check_recipe(content["config"], [fold["config"] for fold in folds])
    scores = pd.concat([read_held_out_scores(fold) for fold in options.folds], ignore_index=True)
    if content["split"]["validation"]:
        raise RequestError("validation patients chose the epoch; set split.validation=none")
    about = {
        "name": options.name,
        "version": options.version,
        "licence": LICENCE,
        "trained_on": f"{len(content['split']['train'])} patients",
        "expected_dice": describe_scores(scores, len(folds)),
    }
    checkpoint.save(FOLDER / f"{options.name}.pt", packaged_content(content, about))
    with Store(options.data) as store:
        card = model_card(content, about, scores, store, len(folds))
    write_text(FOLDER / f"{options.name}.md", card)
    print(card)


def check_recipe(config: Mapping[str, Any], folds: Sequence[Mapping[str, Any]]) -> None:
    """Raise RequestError unless the folds were trained with the settings of the run."""
    expected = _settings(config)
    for fold in folds:
        settings = _settings(fold)
        names = [name for name in expected if expected[name] != settings.get(name)]
        if names:
            raise RequestError(f"the folds differ from the run in {', '.join(names)}")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the recipe by dotted name, with defaults for those not stored."""
    settings = flatten(dataclasses.asdict(restore_config(dict(config))))
    return {
        name: value
        for name, value in settings.items()
        if name.split(".")[0] not in MAY_DIFFER and name != "device.threads"
    }


def read_held_out_scores(run: Path) -> pd.DataFrame:
    """Return the scores of the test patients of a run, one row per volume."""
    scores = read_scores(run / "patients.csv")
    return scores[scores.role == "test"]


def packaged_content(content: Mapping[str, Any], about: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of the packaged checkpoint: half-precision weights and what reads them."""
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in content["model"].items()
    }
    overflowing = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if overflowing:
        raise RequestError(f"float16 cannot hold {', '.join(overflowing)}")
    config = {**content["config"], "output": None, "steps_of": None}
    # The name of the file as the documentation writes it, without the folder of this machine.
    config["data"] = {**config["data"], "path": Path(config["data"]["path"]).name}
    return {
        "model": weights,
        **{name: content[name] for name in STORED},
        "config": config,
        "signatures": content["signatures"],
        "about": dict(about),
    }


def describe_scores(scores: pd.DataFrame, folds: int) -> str:
    """Return the expected Dice of the network in one sentence."""
    low, high = bootstrap(scores.dice.to_numpy())
    return (
        f"mean {scores.dice.mean():.3f} (95 % interval {low:.3f} to {high:.3f}), "
        f"median {scores.dice.median():.3f}, from {len(scores)} patients of the same dataset who "
        f"were held out in {folds} folds of the same recipe"
    )


def describe_test(split: Mapping[str, Any], scores: pd.DataFrame) -> str:
    """Return a sentence on the score of the network on its own test patients."""
    # A name of a volume ends with its date.
    tested = scores[[name.rsplit("_", 1)[0] in split["test"] for name in scores.patient]]
    if not len(tested):
        return "no patient of this dataset. The network itself has not been tested."
    return (
        f"{len(tested)} patients, with the role `test`. On them this network scores a mean of "
        f"{tested.dice.mean():.3f}\n  and a median of {tested.dice.median():.3f}."
    )


def format_groups(groups: pd.DataFrame) -> list[str]:
    """Return the rows of a Markdown table of the scores of groups of patients."""
    rows = []
    for group in groups.itertuples():
        interval = f"{group.low:.3f} to {group.high:.3f}" if group.patients > 1 else "one patient"
        rows.append(
            f"| {group.group} | {group.patients} | {group.mean:.3f} ({interval}) | "
            f"{group.median:.3f} | {group.missed} |"
        )
    return rows


def model_card(
    content: Mapping[str, Any],
    about: Mapping[str, str],
    scores: pd.DataFrame,
    store: Store,
    folds: int,
) -> str:
    """Return the model card in Markdown: use, data, recipe, expected scores and limits."""
    groups = summarise_groups(scores, store=store)
    head = ["| patients | number | mean Dice (95 % interval) | median | Dice below 0.05 |"]
    head += ["|---|---|---|---|---|"]
    low, high = bootstrap(scores.dice.to_numpy())
    all_patients = (
        f"| all | {len(scores)} | {scores.dice.mean():.3f} ({low:.3f} to {high:.3f}) | "
        f"{scores.dice.median():.3f} | {int(count_missed(scores).sum())} |"
    )
    volumes = format_groups(groups[groups.factor == VOLUME])
    sequences = format_groups(groups[groups.factor == SEQUENCES])
    parameters = sum(tensor.numel() for tensor in content["model"].values())
    config, table = content["config"], "\n".join
    return f"""# {about["name"]} {about["version"]}: lower-grade glioma in brain MRI

A 2-D U-Net that marks the FLAIR abnormality of lower-grade gliomas on axial slices.

**For research only. Not a medical device; not for diagnosis or treatment.**

- Licence: {about["licence"]}; see [LICENSE](LICENSE).
- Use: `python -m brainseg.predict input=scan.nii.gz`, or in Python
  `brainseg.segment("{about["name"]}", scan)`.
- Input: {", ".join(content["channels"])}. FLAIR replaces a sequence that is missing. The axial
  slices should show the head at the size of the training images, 256 x 256 pixels of a whole field
  of view. Nothing is resampled.
- Output: one mask. Tumour is where the probability is at least {config["inference"]["threshold"]};
  of the 3-D connected components the setting `{config["inference"]["components"]}` is kept.

## Training

- Data: {about["trained_on"]} of the LGG segmentation dataset (Buda et al. 2019; images of TCGA-LGG,
  The Cancer Imaging Archive). They are among the 88 that the reference implementation trained on.
  Their names are in the checkpoint, and `evaluate` gives them the role `train`.
- Held out: {describe_test(content["split"], scores)}
- Recipe: `experiment=fast` of brainseg {content["versions"]["brainseg"]} without validation
  patients, seed {config["seed"]}, {content["step"]:,} steps of {config["batch_size"]} slices, which
  take half an hour on two CPU cores, in float32. No patient selected the epoch.
- Network: {parameters:,} numbers, stored in float16, used in float32.

## Expected scores

These scores come from {folds} networks of the same recipe, one for each fold of a cross-validation,
on patients that it was not trained on. They are volume Dice, with bootstrap intervals over
patients.

{table([*head, all_patients])}

By tumour volume in voxels:

{table([*head, *volumes])}

By sequence:

{table([*head, *sequences])}

Human readers agree at a Dice of about 0.84 on these images (Buda et al. 2019).

## What it has not seen

- Scans without a tumour, other diseases (glioblastoma, metastases, stroke, multiple sclerosis),
  scans after surgery, children.
- Scanners and protocols other than those of the five institutions of the dataset.
- Skull-stripped images, and images of another size or resolution.
- Any test on data of another source. Expect lower scores there.
"""


if __name__ == "__main__":
    main()
