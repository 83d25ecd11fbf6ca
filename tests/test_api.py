"""The names of `brainseg` for programs: docs/api.md runs as it stands, the import is light, and the types are there for mypy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import brainseg

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()
USER = """
from pathlib import Path

from torch import Tensor

from brainseg import DiceLoss, MRIDataset, UNet, load_checkpoint


def loss_of(path: Path) -> float:
    data = MRIDataset(path, channel="FLAIR", context=1)
    image: Tensor = data[0].image
    logits: Tensor = UNet(in_channels=data.channels, depth=2)(image[None])
    names: list[str] = load_checkpoint("runs/first").channels
    return float(DiceLoss()(logits, data[0].mask[None])) + len(names)


WRONG: int = MRIDataset("lgg.h5").size
"""


@pytest.fixture
def names(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What docs/api.md defines, after its code has run, on the cohort and the run of the project."""
    monkeypatch.chdir(project)
    page = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert page.count("PhantomConfig()") == 1 and page.count('"runs/first"') == 1
    tiny = {
        "PhantomConfig()": "PhantomConfig(patients=10, slices=6, size=32)",
        '"runs/first': '"run',
        "range(3)": "range(12)",
    }
    for words, its in tiny.items():
        page = page.replace(words, its)
    names: dict = {}
    exec(page, names)
    return names


def test_the_page_runs_and_learns(names: dict) -> None:
    assert names["sample"].image.shape == (3, 32, 32) and names["sample"].mask.shape == (1, 32, 32)
    losses = names["losses"]
    assert len(losses) == 12 * 6 and sum(losses[-6:]) < 0.97 * sum(losses[:6])
    trained, network = names["trained"], names["network"]
    assert trained.channels == ["pre-contrast", "FLAIR", "post-contrast"] and trained.classes == [
        "background",
        "tumour",
    ]
    assert trained.in_channels == 3 and trained.image_size == (32, 32) and not network.training
    assert set(trained.split.test) == set(names["split"].test), "the same draw as the command's"
    assert names["found"].mask.shape == names["truth"].shape == (6, 32, 32)
    scored = names["score_patient"]("one", names["found"].mask, names["truth"]).dice
    assert names["dice"] == pytest.approx(scored) and 0 < scored <= 1
    same = (
        names["kept"].mask == names["found"].mask
    ).mean()  # the run was in float32, segment takes the fastest that is there
    assert same > 0.99 and names["kept"].role == "test"


def test_the_network_of_a_checkpoint_is_the_one_that_was_scored(names: dict, project: Path) -> None:
    """Its masks of a test patient are those that the run kept."""
    from brainseg.reports.predictions import read_predictions

    trained, network = names["trained"], names["network"]
    data = brainseg.MRIDataset(names["path"], patients=trained.split.test[:1])
    with torch.no_grad():
        probability = network(data.gather(range(len(data))).image).sigmoid()[:, 0]
    kept = read_predictions(project / "run" / "predictions.h5", data.patients[0]).mask
    assert kept.any() and ((probability >= trained.inference.threshold).numpy() == kept).all()


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "torch numpy pandas hydra h5py matplotlib mlflow monai omegaconf"
    code = f"import sys, brainseg; print(brainseg.__version__, [name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == f"{brainseg.__version__} []"
    assert set(brainseg.__all__) <= set(dir(brainseg))
    with pytest.raises(AttributeError, match="no attribute 'Unet'"):
        _ = brainseg.Unet


@pytest.mark.parametrize("module", ["brainseg.cli.main", "brainseg.compare"])
def test_commands_that_need_no_network_start_without_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_program_is_checked_against_the_types(tmp_path: Path) -> None:
    """A right use passes mypy --strict, a wrong one does not: the names are no Any."""
    (tmp_path / "user.py").write_text(USER)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        f"--cache-dir={tmp_path / 'cache'}",
        "user.py",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "MYPYPATH": str(ROOT)},
    )
    (error,) = [line for line in done.stdout.splitlines() if "error:" in line]
    assert (
        error.startswith(f"user.py:{1 + USER[: USER.index('WRONG')].count(chr(10))}: ")
        and '"tuple[int, int]"' in error
    ), done.stdout
