"""One cohort in every layout: `convert` stores the same pixels and masks of each, and they can be trained on."""

from collections.abc import Callable
from pathlib import Path

import cohorts
import numpy as np
import pytest
from cohorts import CHANNELS, CLASSES, SIZE, SPACING
from image_programs import image_magick

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.readers.base import Reading
from brainseg.data.store import Store

PATTERNS = {
    "folders": ({name: f"*_{name.lower()}.nii.gz" for name in CHANNELS}, "*_seg.nii.gz"),
    "flat": ({name: f"*_{name.lower()}.nrrd" for name in CHANNELS}, "*_seg.mha"),
    "pictures": (
        {name: f"{name}/{{patient}}_{{slice}}.png" for name in CHANNELS},
        "masks/{patient}_{slice}.png",
    ),
}
VALUES = {"oedema": 1, "core": 2}
# Layout, writer, settings, and the reader that is recognised.
FOUR_CHANNELS: list[tuple[str, Callable[[Path], Path], Reading, str]] = [
    (
        "folders",
        cohorts.write_folders,
        Reading(sequences=PATTERNS["folders"][0], mask="*_seg.nii.gz", classes=VALUES),
        "nifti",
    ),
    ("guessed", cohorts.write_folders, Reading(classes=VALUES), "nifti"),
    (
        "flat",
        cohorts.write_flat,
        Reading(sequences=PATTERNS["flat"][0], mask="*_seg.mha", classes=VALUES),
        "nifti",
    ),
    ("nnunet", cohorts.write_nnunet, Reading(), "nnunet"),
    ("decathlon", cohorts.write_decathlon, Reading(), "nnunet"),
    ("bids", cohorts.write_bids, Reading(), "bids"),
    ("brats", cohorts.write_brats, Reading(classes=VALUES), "brats"),
    (
        "pictures",
        cohorts.write_pictures,
        Reading(sequences=PATTERNS["pictures"][0], mask=PATTERNS["pictures"][1], classes=VALUES),
        "images",
    ),
]


@pytest.mark.parametrize(
    ("layout", "write", "reading", "reader"), FOUR_CHANNELS, ids=[row[0] for row in FOUR_CHANNELS]
)
def test_every_layout_gives_the_pixels_and_masks_that_were_written(
    layout: str, write: Callable[[Path], Path], reading: Reading, reader: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "source")
    sized = Reading(**{**vars(reading), "size": (SIZE, SIZE)})
    summary = convert(source, tmp_path / "own.h5", workers=1, reading=sized)
    assert summary.reader == reader and not summary.faults
    with Store(tmp_path / "own.h5") as store:
        assert set(store.channels) == set(CHANNELS) and tuple(store.classes) == CLASSES
        order = [CHANNELS.index(name) for name in store.channels]
        for index, (start, stop) in enumerate(
            zip(store.first_slice[:-1], store.first_slice[1:], strict=True)
        ):
            images, masks = cohorts.expected(index)
            assert np.array_equal(store.images(start, stop), images[:, order]), (layout, index)
            assert np.array_equal(store.masks(start, stop)[:, 0], masks), (layout, index)
            if layout == "pictures":
                assert np.isnan(store.spacing[index]).all()
            else:
                assert store.spacing[index] == pytest.approx(SPACING, rel=1e-5)
        if layout in ("bids", "brats"):  # two sessions of one person
            assert store.patients[0] == store.patients[1] and len(set(store.patients)) == 5
        else:
            assert store.patients == store.volumes == [f"P{index}" for index in range(6)]
        store.verify()


def test_patients_of_two_sizes_are_refused_by_name_with_the_remedy(tmp_path: Path) -> None:
    source = cohorts.write_nnunet(tmp_path / "source")
    with pytest.raises(FaultyCohortError) as refused:
        convert(source, tmp_path / "own.h5", workers=1)
    for name in ("P1", "P3", "P5"):
        rule = "all slices must have one size; size=32 cuts or pads them at the centre"
        assert f"{name}: 24x24 pixels; most of the cohort has 32x32; {rule}" in str(refused.value)


def test_three_channels_as_tiff_and_as_png_are_one_cohort(tmp_path: Path) -> None:
    """TIFF by tifffile and PNG by Pillow and ImageMagick hold the same bytes, so the fingerprints are equal."""
    channels = ["pre-contrast", "FLAIR", "post-contrast"]
    pictures = Reading(
        "images",
        images="images/{patient}_{slice}.png",
        mask="masks/{patient}_{slice}.png",
        channels=channels,
        size=(24, 28),
    )
    writers = {
        "tiff": (cohorts.write_kaggle, Reading(size=(24, 28))),
        "pillow": (cohorts.write_colour, pictures),
    }
    if image_magick():
        writers["magick"] = (lambda source: cohorts.write_colour(source, "ImageMagick"), pictures)
    prints = {}
    for name, (write, reading) in writers.items():
        summary = convert(
            write(tmp_path / name), tmp_path / f"{name}.h5", workers=1, reading=reading
        )
        prints[name] = summary.fingerprint
        with Store(tmp_path / f"{name}.h5") as store:
            images, masks = cohorts.make_patient(0)
            assert np.array_equal(store.images(0, 4), images[:, [0, 3, 1], 4:28, 2:30])
            assert np.array_equal(store.masks(0, 4)[:, 0], masks[:, 4:28, 2:30] > 0)
    assert len(set(prints.values())) == 1, prints


def test_an_imported_cohort_is_trained_on_for_two_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(
        cohorts.write_bids(tmp_path / "source"),
        tmp_path / "own.h5",
        workers=1,
        reading=Reading(size=(32, 32)),
    )
    monkeypatch.chdir(tmp_path)
    settings = [
        "data.path=own.h5",
        "epochs=2",
        "split=kfold",
        "split.folds=5",
        "device=cpu",
        "device.threads=1",
    ]
    settings += ["tracking=none", "model.depth=2", "model.width=4", "output=run"]
    with pytest.raises(SystemExit) as stop:
        run_command("train", train.run, train.check_request, settings)
    assert stop.value.code == 0
    rows = (tmp_path / "run" / "patients.csv").read_text()
    assert "dice/core" in rows
