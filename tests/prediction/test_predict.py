"""predict on slices and stacks: the scores of evaluate, masks in the source's format, nothing done twice, faults in one line."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scans import THRESHOLD, threshold_weights
from tiffs import write_cohort, write_slice

from brainseg import evaluate, predict, train
from brainseg.cli.main import run_command
from brainseg.config import (
    DataConfig,
    DeviceConfig,
    EvaluateConfig,
    HoldoutConfig,
    LossConfig,
    OptimizerConfig,
    PhantomConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
    UNetConfig,
)
from brainseg.data.cases.find import find_cases
from brainseg.data.imageio.tiff import read_mask
from brainseg.data.phantom import cohort as phantom
from brainseg.prediction.output_folder import NOTICE, digest_of
from brainseg.reports.predictions import read_predictions

FLOAT32 = DeviceConfig("cpu", "float32")
COHORT = PhantomConfig(patients=10, slices=8, size=32)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Ten patients as a folder of slices, and prepared."""
    folder = tmp_path_factory.mktemp("cohort")
    source = phantom.write_cohort(COHORT, folder / "kaggle_3m")
    from brainseg.data.conversion import convert

    convert(source, folder / "lgg.h5", workers=1)
    return source, folder / "lgg.h5"


@pytest.fixture(scope="module")
def runs(cohort: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs, of which one sees neighbouring slices."""
    made = []
    for seed, context in ((0, 0), (1, 1)):
        folder = tmp_path_factory.mktemp("runs") / f"run{seed}"
        data, optimizer = (
            DataConfig(path=str(cohort[1]), context=context),
            OptimizerConfig("adamw", lr=1e-2),
        )
        config = TrainConfig(
            seed=seed,
            data=data,
            split=HoldoutConfig(),
            model=UNetConfig(depth=2, width=8),
            loss=LossConfig("dice"),
            epochs=12,
            optimizer=optimizer,
            device=FLOAT32,
            tracking=TrackingConfig("none"),
            output=str(folder),
        )
        assert train.run(config).state == "finished"
        made.append(str(folder))
    return made


def call(*overrides: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command("predict", predict.run, predict.check_request, [*map(str, overrides)])
    assert (ended.value.code or 0) == code


def evaluated(checkpoint: Any, data: Path, output: Path) -> pd.DataFrame:
    config = EvaluateConfig(
        checkpoint=checkpoint,
        output=str(output),
        data=DataConfig(path=str(data)),
        device=FLOAT32,
        overlays=False,
        split=SplitConfig("all"),
        predictions="probabilities",
    )
    assert evaluate.run(config) == 0
    return pd.read_csv(output / "patients.csv").set_index("patient").sort_index()


@pytest.mark.parametrize("members", [1, 2])
def test_scores_and_masks_are_those_of_evaluate(
    cohort: tuple[Path, Path], runs: list[str], members: int, tmp_path: Path
) -> None:
    """One checkpoint, and an ensemble."""
    source, data = cohort
    call(
        f"checkpoint=[{','.join(runs[:members])}]",
        f"input={source}",
        f"output={tmp_path / 'out'}",
        "device=cpu",
        "probabilities=true",
    )
    expected = evaluated(runs[:members], data, tmp_path / "evaluation")
    found = pd.read_csv(tmp_path / "out" / "patients.csv").set_index("patient").sort_index()
    pd.testing.assert_frame_equal(found, expected)
    assert expected.dice.max() > 0.1, "a network that segments nothing would agree with anything"
    said = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "evaluation")
    ]
    assert (
        said[0]["metrics"] == said[1]["metrics"]
        and said[0]["finished"]
        and said[0]["notice"] == NOTICE
    )
    for patient in expected.index:
        kept = read_predictions(tmp_path / "evaluation" / "predictions.h5", patient)
        folder = tmp_path / "out" / patient
        masks = [read_mask(folder / f"{patient}_{number}_mask.tif") for number in range(1, 9)]
        assert np.array_equal(masks, kept.mask), (
            "written with the names and values of the public set"
        )
        probability = tifffile.imread(folder / f"{patient}_probability.tif")
        assert np.abs(probability - kept.probability[:, 0] / 255).max() <= 0.002
    volumes = pd.read_csv(tmp_path / "out" / "volumes.csv").set_index("patient").sort_index()
    assert (
        volumes.tumour_voxels == expected.predicted_pixels
    ).all() and volumes.tumour_ml.isna().all()


def test_a_patient_alone_without_masks_is_segmented_but_not_scored(
    cohort: tuple[Path, Path], runs: list[str], tmp_path: Path
) -> None:
    name = sorted(folder.name for folder in cohort[0].iterdir() if folder.is_dir())[0]
    call(
        f"checkpoint={runs[0]}",
        f"input={cohort[0] / name}",
        f"output={tmp_path / 'with'}",
        "device=cpu",
    )
    alone = tmp_path / name
    alone.mkdir()
    for file in (cohort[0] / name).glob("*[0-9].tif"):
        (alone / file.name).write_bytes(file.read_bytes())
    call(f"checkpoint={runs[0]}", f"input={alone}", f"output={tmp_path / 'without'}", "device=cpu")
    for masks in (tmp_path / "with" / name).glob("*_mask.tif"):
        assert masks.read_bytes() == (tmp_path / "without" / name / masks.name).read_bytes()
    assert (tmp_path / "with" / "patients.csv").exists() and not (
        tmp_path / "without" / "patients.csv"
    ).exists()
    assert json.loads((tmp_path / "without" / "summary.json").read_text())["metrics"] == {}
    (alone / f"{name}_1_mask.tif").write_bytes(
        (cohort[0] / name / f"{name}_1_mask.tif").read_bytes()
    )
    call(f"checkpoint={runs[0]}", f"input={alone}", f"output={tmp_path / 'without'}", "device=cpu")
    assert (
        "masks of 1 of 8 slices: not scored"
        in json.loads((tmp_path / "without" / "summary.json").read_text())["notes"]
    )


def test_what_is_done_is_left_alone_and_what_differs_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, weights, output = (
        write_cohort(tmp_path / "kaggle_3m"),
        threshold_weights(tmp_path / "w.pt"),
        tmp_path / "out",
    )
    request = [f"checkpoint={weights}", f"input={source}", f"output={output}", *THRESHOLD]

    def made(*further: str) -> str:
        call(*request, *further)
        return next(
            line for line in capsys.readouterr().out.splitlines() if " made, " in line
        ).split(";")[0]

    assert made() == "3 made, 0 done before, 0 failed"
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.rglob("*_mask.tif")
    }
    first = {
        path.name: path.read_bytes() for path in output.glob("*.*") if path.name != "summary.json"
    }
    assert made() == "0 made, 3 done before, 0 failed"
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.rglob("*_mask.tif")
    } == before
    assert {
        path.name: path.read_bytes() for path in output.glob("*.*") if path.name != "summary.json"
    } == first, "scores, volumes, sheet"
    name = "TCGA_AA_0001_20010102"
    write_slice(source, name, 2, np.full((16, 16, 3), 9, np.uint8), None)
    assert made() == "1 made, 2 done before, 0 failed", "another slice"
    (output / name / f"{name}_2_mask.tif").write_bytes(b"damaged")
    assert made() == "1 made, 2 done before, 0 failed", "another mask than was written"
    (output / name / "prediction.json").write_text("{")
    assert made() == "1 made, 2 done before, 0 failed", "killed before its last file"
    assert made("inference.threshold=0.9") == "3 made, 0 done before, 0 failed"
    threshold_weights(weights, channel=0)
    assert made() == "3 made, 0 done before, 0 failed", "other weights of the same name"
    assert made("probabilities=true") == "3 made, 0 done before, 0 failed"


def test_one_patient_that_cannot_be_read_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, weights = write_cohort(tmp_path / "kaggle_3m"), threshold_weights(tmp_path / "w.pt")
    (source / "TCGA_AA_0001_20010102" / "TCGA_AA_0001_20010102_2.tif").write_bytes(b"no TIFF")
    call(
        f"checkpoint={weights}", f"input={source}", f"output={tmp_path / 'out'}", *THRESHOLD, code=1
    )
    assert (
        "TCGA_AA_0001_20010102: " in caplog.text
        and "_2.tif: damaged, or not a TIFF file" in caplog.text
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["failed"]) == ["TCGA_AA_0001_20010102"] and summary["made"] == 2
    assert (
        len(pd.read_csv(tmp_path / "out" / "volumes.csv")) == 2
        and not (tmp_path / "out" / "TCGA_AA_0001_20010102").exists()
    )


@pytest.mark.parametrize(
    ("dtype", "colours"),
    [(np.uint8, True), (np.uint16, True), (np.int16, False), (np.float32, False)],
)
def test_a_stack_of_any_depth_is_segmented(dtype: type, colours: bool, tmp_path: Path) -> None:
    """Three samples a pixel, or one grey stack, for which FLAIR is taken; 300 x 14 pixels."""
    pages = np.random.default_rng(0).integers(0, 20, (4, 30, 14)).astype(dtype)
    pages[1:3, 20:28, 2:7] = 200
    stack = (
        np.stack([np.zeros_like(pages), pages, np.zeros_like(pages)], axis=-1) if colours else pages
    )
    tifffile.imwrite(
        tmp_path / "scan.tif",
        stack,
        photometric="rgb" if colours else "minisblack",
        compression="deflate",
    )
    weights = threshold_weights(tmp_path / "w.pt")
    call(
        f"checkpoint={weights}",
        f"input={tmp_path / 'scan.tif'}",
        f"output={tmp_path / 'out'}",
        "probabilities=true",
        *THRESHOLD,
    )
    mask = tifffile.imread(tmp_path / "out" / "scan" / "scan_mask.tif")
    assert (
        mask.dtype == np.uint8
        and np.array_equal(mask == 255, pages == 200)
        and np.array_equal(mask > 0, mask == 255)
    )
    assert np.array_equal(
        tifffile.imread(tmp_path / "out" / "scan" / "scan_probability.tif") >= 0.5, mask > 0
    )
    notes = " ".join(json.loads((tmp_path / "out" / "summary.json").read_text())["notes"])
    assert ("no pre-contrast (FLAIR stands in for it" in notes) is not colours and (
        "constant post-contrast" in notes
    ) is colours


def test_stacks_by_sequence_are_taken_in_order_and_null_is_missing(tmp_path: Path) -> None:
    flair, post = np.zeros((2, 3, 12, 10), np.uint8)
    flair[1, 2:6, 2:6], post[2, 5:9, 3:9] = 200, 200
    for name, pages in (("flair", flair), ("post", post)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pages, photometric="minisblack")
    weights = threshold_weights(tmp_path / "w.pt", channel=2)
    call(
        f"checkpoint={weights}",
        f"input=[null,{tmp_path}/flair.tif,{tmp_path}/post.tif]",
        f"output={tmp_path / 'out'}",
        *THRESHOLD,
    )
    (mask,) = (tmp_path / "out").glob("*/*_mask.tif")
    assert np.array_equal(tifffile.imread(mask) > 0, post > 0)


def test_a_single_slice_is_segmented_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.zeros((15, 13, 3), np.uint8)
    image[3:8, 2:9] = 200
    write_slice(tmp_path, "patient", 1, image, None)
    call(
        f"checkpoint={threshold_weights(tmp_path / 'w.pt')}",
        f"input={tmp_path / 'patient'}",
        f"output={tmp_path / 'out'}",
        *THRESHOLD,
    )
    assert "note: a single slice" in capsys.readouterr().out
    assert np.array_equal(
        read_mask(tmp_path / "out" / "patient" / "patient_1_mask.tif") > 0, image[..., 0] > 0
    )


def test_pictures_show_every_case_and_the_mask_where_it_is(tmp_path: Path) -> None:
    source, weights, output = (
        write_cohort(tmp_path / "kaggle_3m", 8),
        threshold_weights(tmp_path / "w.pt"),
        tmp_path / "out",
    )
    call(f"checkpoint={weights}", f"input={source}", f"output={output}", *THRESHOLD)
    sheet = Image.open(output / "contact_sheet.png")
    thumbnail = Image.open(output / "TCGA_AA_0000_20010101" / "thumbnail.png")
    assert (
        sheet.width >= 6 * thumbnail.width
        and 2 * thumbnail.height < sheet.height < 3 * thumbnail.height
    ), "eight are two rows"
    strip = np.asarray(Image.open(output / "TCGA_AA_0000_20010101" / "overlay.png"))
    assert (strip.std(axis=2) > 20).sum() > 500, "masks are in colour, the scan is grey"
    call(
        f"checkpoint={weights}",
        f"input={source}",
        f"output={tmp_path / 'plain'}",
        "overlays=false",
        *THRESHOLD,
    )
    assert not list((tmp_path / "plain").rglob("*.png"))


def index_of(page: Path) -> dict[str, Any]:
    return json.loads(
        re.findall(r'<script type="application/json" id="index">(.*?)</script>', page.read_text())[
            0
        ]
    )


def test_the_viewer_shows_what_was_segmented_now_and_before(tmp_path: Path) -> None:
    source, output = write_cohort(tmp_path / "kaggle_3m"), tmp_path / "out"
    request = [f"checkpoint={threshold_weights(tmp_path / 'w.pt')}", f"output={output}", *THRESHOLD]
    call(*request, f"input={source}", "overlays=false")
    volumes = pd.read_csv(output / "volumes.csv").set_index("patient")
    scores = pd.read_csv(output / "patients.csv").set_index("patient").dice
    patients = index_of(output / "viewer.html")["patients"]
    assert {one["name"] for one in patients} == set(volumes.index)
    for one in patients:
        assert one["voxels"] == [24 * (one["slices"] - 2), volumes.tumour_voxels[one["name"]]], (
            "truth, prediction"
        )
        assert one["dice"] == pytest.approx(
            [scores[one["name"]]], abs=1e-5
        )  # the CSV has five digits
    worst = scores.idxmin()
    call(*request, f"input={source}", "overlays=false", "viewer=1")
    index = index_of(output / "viewer.html")
    assert [one["name"] for one in index["patients"]] == [worst] and len(index["left_out"]) == 2
    for mask in source.rglob("*_mask.tif"):
        mask.unlink()
    call(*request, f"input={source}", "overlays=false")
    patients = index_of(output / "viewer.html")["patients"]
    assert [one["voxels"] for one in patients] == [
        [None, volumes.tumour_voxels[one["name"]]] for one in patients
    ], "nobody knows the truth"
    call(*request, f"input={source}", f"output={tmp_path / 'other'}", "viewer=0")
    assert not (tmp_path / "other" / "viewer.html").exists()


def test_the_same_files_taken_for_other_sequences_are_another_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flair, post = np.zeros((2, 3, 12, 10), np.uint8)
    flair[1, 2:6, 2:6], post[2, 5:9, 3:9] = 200, 200
    for name, pages in (("p_one", flair), ("p_two", post)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pages, photometric="minisblack")
    weights = threshold_weights(tmp_path / "w.pt", channel=2)
    for order, expected in (
        ("null,{0}/p_two.tif,{0}/p_one.tif", flair),
        ("null,{0}/p_one.tif,{0}/p_two.tif", post),
    ):
        call(
            f"checkpoint={weights}",
            f"input=[{order.format(tmp_path)}]",
            f"output={tmp_path / 'out'}",
            *THRESHOLD,
        )
        assert "1 made, 0 done before" in capsys.readouterr().out
        (mask,) = (tmp_path / "out").glob("*/*_mask.tif")
        assert np.array_equal(tifffile.imread(mask) > 0, expected > 0)
    case = find_cases(
        [None, f"{tmp_path}/p_one.tif", f"{tmp_path}/p_two.tif"],
        {},
        ["pre-contrast", "FLAIR", "post-contrast"],
    )[0]
    other = dataclasses.replace(
        case,
        stacks={
            "pre-contrast": case.stacks["FLAIR"],
            "post-contrast": case.stacks["post-contrast"],
        },
    )
    assert list(other.files) == list(case.files) and digest_of({}, other) != digest_of({}, case)
