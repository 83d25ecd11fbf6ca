"""Compare with other programs: the same patients, the same minutes, the same processor.

    python scripts/peers.py data=lgg.h5 minutes=30 fold=1
    python scripts/peers.py data=lgg.h5 minutes=10 only=brainseg,monai
    python scripts/peers.py data=lgg.h5 only=nnunet nnunet_python=ENVIRONMENT/bin/python

    data            a file that brainseg.prepare made, of patients with one volume each
    minutes         the training time of each program (30)
    fold            the fold of `split=kfold split.folds=5` that is tested (1)
    only            a list of brainseg, reference, monai, nnunet (default: all)
    nnunet_python   the Python of an environment with `pip install nnunetv2` (default: this one)
    threads         the number of CPU threads of each program (default: torch's)
    output          the folder of peers.md, peers.csv, peers.png, the logs and the masks (peers)

    brainseg        experiment=fast
    reference       experiment=reference, the recipe of the reference implementation
    monai           the UNet and the loop of MONAI's tutorial on 2-D segmentation
    nnunet          nnU-Net v2, configuration 2d, with its planning, preprocessing, augmentation,
                    mirroring and learning rate schedule, which ends when the time is over

All train on the patients outside the fold, without validation patients, and are tested on the
patients of the fold. The programs run one after the other. The time is that of training alone:
preparing the data and predicting come on top. The score is the Dice of a patient's volume. nnU-Net
gets no post-processing, because it chooses one by a cross-validation. A program that has already
been run in `output` is not run again.
"""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from brainseg.config import DataConfig, KFoldConfig
from brainseg.config.overrides import values_by_setting
from brainseg.core.files import write_text, writing
from brainseg.data.open import read_dataset_info
from brainseg.data.split import Split, make_split
from brainseg.data.store import Store
from brainseg.evaluation.metrics import count_missed, score_patient
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from brainseg.reports.tables import read_scores
from peer_programs import monai_unet, nnunet_volumes

DEFAULTS = {
    "data": "",
    "minutes": "30",
    "fold": "1",
    "only": "brainseg,reference,monai,nnunet",
    "nnunet_python": sys.executable,
    "threads": "",
    "output": "peers",
}
FOLDS = 5
LABELS = {
    "brainseg": "`experiment=fast`",
    "reference": "reference recipe",
    "monai": "MONAI, UNet of the tutorial",
    "nnunet": "nnU-Net v2, 2d",
}


def main(arguments: list[str]) -> int:
    """Run the programs, print and write the table, and return the exit code."""
    overrides = values_by_setting(arguments)
    if overrides.keys() - DEFAULTS.keys() or not overrides.get("data"):
        print(__doc__)
        return 0 if overrides.keys() & {"-h", "--help"} else 2
    settings = DEFAULTS | overrides
    output = Path(settings["output"])
    output.mkdir(parents=True, exist_ok=True)
    data = DataConfig(path=settings["data"])
    split_config = KFoldConfig(folds=FOLDS, fold=int(settings["fold"]), validation="none")
    split = make_split(split_config, read_dataset_info(data).patients)
    tables = []
    for program in settings["only"].split(","):
        scores = output / f"{program}.csv"
        if not scores.is_file():
            table = run_program(program, settings, split, output / program)
            with writing(scores) as partial:
                table.assign(program=program).to_csv(partial, index=False)
        tables.append(read_scores(scores))
    scores = pd.concat(tables, ignore_index=True)
    with writing(output / "peers.csv") as partial:
        scores.to_csv(partial, index=False)
    text = format_table(scores, settings["minutes"])
    write_text(output / "peers.md", text)
    draw(scores, settings["minutes"], output / "peers.png")
    print(text)
    return 0


def run_program(program: str, settings: dict[str, str], split: Split, folder: Path) -> pd.DataFrame:
    """Train and test one program. Return the patients of the test fold with their Dice."""
    if program in ("brainseg", "reference"):
        return run_brainseg(program, settings, folder)
    masks = folder / "masks"
    with Store(Path(settings["data"])) as store:
        if program == "monai":
            command = [sys.executable, monai_unet.__file__, settings["data"], settings["fold"]]
        else:
            nnunet_volumes.export(store, split, folder / "raw")
            script = Path(nnunet_volumes.__file__).with_name("nnunet.py")
            command = [settings["nnunet_python"], str(script), str(folder)]
        run_logged([*command, str(masks), settings["minutes"], settings["threads"]], folder)
        return score_masks(store, split, masks)


def run_logged(command: list[str], folder: Path) -> None:
    """Run a command with its output in train.log of `folder`. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def run_brainseg(program: str, settings: dict[str, str], folder: Path) -> pd.DataFrame:
    """Train a recipe of this package and return the scores of its test patients."""
    experiment = "fast" if program == "brainseg" else "reference"
    threads = [f"device.threads={settings['threads']}"] if settings["threads"] else []
    command = [
        *(sys.executable, "-m", "brainseg.train", f"experiment={experiment}", *threads),
        *(f"data.path={settings['data']}", f"max_minutes={settings['minutes']}", "test=yes"),
        *("split=kfold", f"split.folds={FOLDS}", f"split.fold={settings['fold']}"),
        *("split.validation=none", "tracking=none", "resume=auto", f"output={folder / 'run'}"),
    ]
    run_logged(command, folder)
    scores = read_scores(folder / "run" / "patients.csv")
    return scores[scores.role == "test"][["patient", "dice", "tumour_pixels"]]


def score_masks(store: Store, split: Split, masks: Path) -> pd.DataFrame:
    """Return the Dice of the masks NAME.nii.gz of the test patients' volumes."""
    rows = []
    for volume, patient in zip(store.volumes, store.patients, strict=True):
        if patient in split.test:
            truth = store.masks(*store.rows_of(volume))[:, 0]
            prediction = np.asarray(nibabel.load(masks / f"{volume}.nii.gz").dataobj)
            score = score_patient(volume, prediction.T, truth, with_geometry=False)
            rows.append((volume, score.dice, score.tumour_pixels))
    return pd.DataFrame(rows, columns=["patient", "dice", "tumour_pixels"])


def format_table(scores: pd.DataFrame, minutes: str) -> str:
    """Return the table of the programs in Markdown."""
    lines = [f"| {minutes} minutes | patients | mean Dice (95 % interval) | median | below 0.05 |"]
    lines += ["|---|---|---|---|---|"]
    for program, rows in scores.groupby("program", sort=False):
        low, high = bootstrap(rows.dice.to_numpy())
        lines.append(
            f"| {LABELS[program]} | {len(rows)} | {rows.dice.mean():.3f} ({low:.3f} to {high:.3f}) "
            f"| {rows.dice.median():.3f} | {int(count_missed(rows).sum())} |"
        )
    return "\n".join([*lines, ""])


def draw(scores: pd.DataFrame, minutes: str, path: Path) -> None:
    """Draw a column of dots per program, one for each test patient, with mean and interval."""
    programs = list(dict.fromkeys(scores.program))
    figure = new_figure(1.2 + 1.7 * len(programs), 3.6)
    axes = figure.subplots()
    for column, program in enumerate(programs):
        dice = np.sort(scores.dice[scores.program == program].to_numpy())
        # Neighbouring dots are moved aside in turn, so that equal scores stay visible.
        offsets = (np.arange(len(dice)) % 5 - 2) * 0.05
        axes.scatter(column + offsets, dice, s=14, color=BLUE, alpha=0.7, linewidths=0)
        low, high = bootstrap(dice)
        axes.plot([column + 0.25] * 2, [low, high], color=GREY)
        axes.plot(column + 0.25, dice.mean(), "o", color=ORANGE, markersize=5)
        axes.annotate(
            f"{dice.mean():.2f}",
            (column + 0.29, dice.mean()),
            fontsize=8,
            verticalalignment="center",
        )
    axes.set_xticks(
        range(len(programs)), [LABELS[name].strip("`") for name in programs], fontsize=8
    )
    axes.set_xlim(-0.5, len(programs) - 0.3)
    axes.set_ylim(-0.02, 1)
    axes.set_ylabel(f"Dice of a test patient after {minutes} minutes")
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
