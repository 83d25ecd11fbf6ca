"""The phantom cohort: the same patients every time, in the layout of the real data, not to be had by a threshold."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
import tifffile
from scipy.ndimage import label

from brainseg.config import PhantomConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.data.phantom import cohort as phantom
from brainseg.data.phantom.cohort import (
    ensure_cohort,
    institution,
    make_patient,
    patient_names,
    write_cohort,
)

SMALL = PhantomConfig(patients=8, slices=16, size=64)


@pytest.fixture(scope="module")
def cohort() -> list[tuple[np.ndarray, np.ndarray]]:
    return [make_patient(SMALL, index) for index in range(SMALL.patients)]


def test_shapes_and_values(cohort):
    for images, masks in cohort:
        assert images.shape == (16, 64, 64, 3) and images.dtype == np.uint8
        assert masks.shape == (16, 64, 64) and masks.dtype == np.uint8
        assert set(np.unique(masks)) == {0, 255}  # every patient has a tumour


def test_the_same_patient_in_every_cohort(cohort):
    larger = replace(SMALL, patients=20, folder="elsewhere")
    for index in (0, 7):
        for first, again in zip(cohort[index], make_patient(larger, index), strict=True):
            np.testing.assert_array_equal(first, again)
    assert patient_names(larger)[:8] == patient_names(SMALL)


def test_patients_and_seeds_differ(cohort):
    assert len({images.tobytes() for images, _ in cohort}) == SMALL.patients
    assert (make_patient(replace(SMALL, seed=1), 0)[0] != cohort[0][0]).any()


def test_a_patient_looks_alike_at_every_size(cohort):
    images, masks = make_patient(replace(SMALL, size=128), 1)
    halved = images.reshape(16, 64, 2, 64, 2, 3).mean((2, 4))
    likeness = [np.corrcoef(halved.ravel(), other.ravel())[0, 1] for other, _ in cohort]
    assert np.argmax(likeness) == 1 and likeness[1] > 0.85
    assert 3 < masks.sum() / cohort[1][1].sum() < 5


def test_institutions_are_even_and_differ(cohort):
    names = [name.split("_") for name in patient_names(PhantomConfig())]
    assert all(len(parts) == 4 and parts[3].isdigit() and len(parts[3]) == 8 for parts in names)
    assert {where: sum(parts[1] == where for parts in names) for where in "ABCD"} == dict.fromkeys(
        "ABCD", 8
    )
    air = {
        where: np.mean(
            [cohort[i][0][:, :4, :4].mean() for i in range(8) if institution(i) == where]
        )
        for where in "ABCD"
    }
    assert air["D"] > air["B"] > air["C"] > air["A"]  # as their noise


def test_slices_without_tumour_and_empty_ends(cohort):
    for images, masks in cohort:
        tumour = (masks > 0).any((1, 2))
        assert 0 < tumour.sum() < len(tumour)
        head = (images[..., 1] > 0.3 * np.percentile(images[..., 1], 99)).mean((1, 2))
        assert max(head[0], head[-1]) < 0.15 * head.max()


def test_tumour_is_one_body_over_neighbouring_slices(cohort):
    for _, masks in cohort:
        parts, _ = label(masks > 0)
        assert np.bincount(parts.ravel())[1:].max() >= 0.99 * (masks > 0).sum()
    assert sum((masks > 0).any((1, 2)).sum() >= 2 for _, masks in cohort) >= 6


def test_tumour_is_brighter_than_its_surroundings_on_flair(cohort):
    for images, masks in cohort:
        tumour = masks > 0
        assert images[tumour, 1].mean() > 1.15 * np.median(
            images[tumour.any((1, 2))][..., 1][images[tumour.any((1, 2))][..., 1] > 20]
        )


def test_missing_sequence_is_a_copy_of_flair():
    config = PhantomConfig(slices=4, size=32)
    copies = np.array(
        [
            [(images[..., c] == images[..., 1]).all() for c in (0, 2)]
            for images, _ in (make_patient(config, i) for i in range(32))
        ]
    )
    assert copies.sum(0).tolist() == [2, 4] and not copies.all(1).any()


def test_no_threshold_on_flair_finds_the_tumours(cohort):
    thresholds = np.linspace(0.02, 0.98, 49)
    scores = []
    for images, masks in cohort:
        low, high = np.percentile(images[..., 1], (10, 99))
        flair, tumour = (images[..., 1] - low) / (high - low), masks > 0
        scores.append(
            [
                2 * (tumour & (flair > t)).sum() / (tumour.sum() + (flair > t).sum())
                for t in thresholds
            ]
        )
    assert np.mean(scores, axis=0).max() < 0.6
    assert np.max(scores, axis=1).mean() < 0.6  # even with the best threshold of each patient


@pytest.mark.parametrize(("size", "slices"), [(32, 4), (33, 5), (48, 7), (96, 3 + 1)])
def test_tiny_sizes_have_tumours_and_empty_slices(size, slices):
    config = PhantomConfig(size=size, slices=slices)
    for index in range(12):
        images, masks = make_patient(config, index)
        assert images.shape == (slices, size, size, 3)
        assert masks.any() and not masks.any((1, 2)).all()


def test_layout_is_that_of_the_real_data(tmp_path):
    config = replace(SMALL, patients=3, slices=4, size=32)
    root = write_cohort(config, tmp_path / "kaggle_3m")
    assert sorted(path.name for path in root.iterdir()) == sorted(patient_names(config))
    assert [path.name for path in tmp_path.iterdir()] == ["kaggle_3m"]  # nothing temporary is left
    images, masks = make_patient(config, 2)
    name = patient_names(config)[2]
    assert len(list((root / name).iterdir())) == 8
    for n in range(1, 5):
        np.testing.assert_array_equal(
            tifffile.imread(root / name / f"{name}_{n}.tif"), images[n - 1]
        )
        np.testing.assert_array_equal(
            tifffile.imread(root / name / f"{name}_{n}_mask.tif"), masks[n - 1]
        )
    with pytest.raises(DataError, match="already there"):
        write_cohort(config, root)


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(config: PhantomConfig, index: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "make_patient", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_cohort(SMALL, tmp_path / "kaggle_3m")
    assert not list(tmp_path.iterdir())


TINY = PhantomConfig(patients=4, slices=4, size=32)


def test_ensure_makes_the_file_once_and_finds_it_again(tmp_path, monkeypatch):
    config = replace(TINY, folder=str(tmp_path / "new" / "data"))
    path = ensure_cohort(config)
    assert path.parent == tmp_path / "new" / "data" and path.suffix == ".h5"
    assert len(list((path.with_suffix("") / "kaggle_3m").iterdir())) == 4
    with h5py.File(path) as file:
        names = [name.decode() for name in file["volumes"][:]]
        assert names == sorted(patient_names(config))
        images, masks = make_patient(config, 3)
        start = file["first_slice"][names.index(patient_names(config)[3])]
        np.testing.assert_array_equal(
            file["images"][start : start + 4], images.transpose(0, 3, 1, 2)
        )
        np.testing.assert_array_equal(file["masks"][start : start + 4, 0], masks // 255)
    monkeypatch.setattr(phantom, "make_patient", None)  # would fail if anything was drawn again
    assert ensure_cohort(config) == path


def test_the_file_is_named_by_the_settings_not_by_the_folder(tmp_path):
    here, there = (
        ensure_cohort(replace(TINY, folder=str(tmp_path / name))) for name in ("here", "there")
    )
    other = ensure_cohort(replace(TINY, seed=5, folder=str(tmp_path / "here")))
    assert here.name == there.name != other.name
    assert here.read_bytes() == there.read_bytes() != other.read_bytes()


def test_a_lost_file_is_made_again_from_the_slices(tmp_path, monkeypatch):
    config = replace(TINY, folder=str(tmp_path))
    path = ensure_cohort(config)
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(phantom, "make_patient", None)
    assert ensure_cohort(config).read_bytes() == content


def test_many_processes_may_start_at_once(tmp_path):
    config = replace(TINY, folder=str(tmp_path))
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        paths = set(pool.map(ensure_cohort, [config] * 3))
    assert len(paths) == 1 and paths.pop().is_file()
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".lock"]) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocker = tmp_path / "data"
    blocker.write_text("a file, not a folder")
    with pytest.raises(RequestError, match=r"data\.phantom\.folder=.*data: .*choose"):
        ensure_cohort(replace(TINY, folder=str(blocker)))
