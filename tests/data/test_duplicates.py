"""The same scan under two names is found whatever it is called, and no split trains on it and tests
on it.
"""

import shutil
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiffs import write_cohort, write_slice, write_volume

from brainseg.config import KFoldConfig
from brainseg.core.errors import DataError
from brainseg.data import conversion
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.readers.base import Scan
from brainseg.data.readers.verify import scan_volumes
from brainseg.data.split import make_split
from brainseg.data.store import Store
from brainseg.data.volume import fingerprint, hash_slice

FIRST, COPY = "TCGA_AA_0000_20010101", "TCGA_ZZ_9999_20200101"


def copy(
    source: Path, name: str, twin: str, slices: int | None = None, mirror: bool = False
) -> None:
    """Write the slices of `name` under the name `twin`, all or some of them, compressed so that the
    files differ.
    """
    for path in sorted((source / name).iterdir()):
        number = int(path.stem.removesuffix("_mask").rsplit("_", 1)[1])
        pixels = tifffile.imread(path)[:, ::-1] if mirror else tifffile.imread(path)
        if slices is not None and number > slices:
            continue
        target = source / twin / path.name.replace(name, twin)
        target.parent.mkdir(exist_ok=True)
        tifffile.imwrite(
            target,
            np.ascontiguousarray(pixels),
            compression="zlib",
            photometric="rgb" if pixels.ndim == 3 else "minisblack",
        )


@pytest.mark.parametrize("mirror", [False, True])
def test_one_scan_of_two_patients_is_a_fault_that_names_both(tmp_path: Path, mirror: bool) -> None:
    source = write_cohort(tmp_path / "kaggle_3m")
    copy(source, FIRST, COPY, mirror=mirror)
    with pytest.raises(FaultyCohortError) as refused:
        convert(source, tmp_path / "lgg.h5", workers=1)
    assert refused.value.faults == [
        f"{COPY}: 3 of 3 slices are also in {FIRST}, as they are or mirrored; a split "
        "would train and test on the same scan; "
        "remove one, or set on_duplicate=keep_together to make them one patient"
    ]
    assert not (tmp_path / "lgg.h5").exists()


@pytest.mark.parametrize(("shared", "is_duplicate"), [(2, True), (1, False)])
def test_a_fifth_of_the_slices_is_the_same_scan(
    tmp_path: Path, shared: int, is_duplicate: bool
) -> None:
    source = tmp_path / "kaggle_3m"
    write_volume(source, "a", slices=10)
    write_volume(source, "b", slices=10)
    for number in range(1, shared + 1):
        shutil.copy(source / "a" / f"a_{number}.tif", source / "b" / f"b_{number}.tif")
    if is_duplicate:
        with pytest.raises(FaultyCohortError, match="b: 2 of 10 slices are also in a"):
            convert(source, tmp_path / "lgg.h5", workers=1)
    else:
        assert convert(source, tmp_path / "lgg.h5", workers=1).warnings == []


def test_blank_slices_are_no_scan(tmp_path: Path) -> None:
    source = tmp_path / "kaggle_3m"
    for name in ("a", "b"):
        write_volume(source, name, slices=10)
        for number in range(1, 6):
            write_slice(source, name, number, np.full((16, 16, 3), number, np.uint8), None)
    assert convert(source, tmp_path / "lgg.h5", workers=1).warnings == []


def test_kept_together_they_are_one_patient_in_every_split(tmp_path: Path) -> None:
    source = write_cohort(tmp_path / "kaggle_3m", patients=5)
    copy(source, FIRST, COPY, mirror=True)
    copy(source, COPY, "TCGA_ZZ_8888_20200101", slices=2)
    summary = convert(source, tmp_path / "lgg.h5", workers=1, on_duplicate="keep_together")
    assert len(summary.warnings) == 3 and all(
        "kept together as volumes of one patient" in line for line in summary.warnings
    )
    with Store(tmp_path / "lgg.h5") as store:
        assert len(store.volumes) == 7 and len(set(store.patients)) == 5
        together = {
            patient
            for volume, patient in zip(store.volumes, store.patients, strict=True)
            if volume[5:7] == "ZZ"
        }
        assert together == {"TCGA_AA_0000"}
        for fold in range(5):
            split = make_split(KFoldConfig(folds=5, fold=fold), store.patients)
            assert (
                sum("TCGA_AA_0000" in part for part in (split.train, split.validation, split.test))
                == 1
            )
    convert(source, tmp_path / "again.h5", workers=2, on_duplicate="keep_together")
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "lgg.h5").read_bytes()
    assert not convert(source, tmp_path / "lgg.h5", workers=1, on_duplicate="keep_together").written


def test_the_patients_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    source = write_cohort(tmp_path / "kaggle_3m")
    copy(source, FIRST, COPY)
    summary = convert(source, tmp_path / "lgg.h5", workers=1, on_duplicate="keep_together")
    with Store(tmp_path / "lgg.h5") as store:
        assert store.patients[-1] == "TCGA_AA_0000" and store.fingerprint == summary.fingerprint
        store.verify()
    digests = [volume.digest for volume in summary.volumes]
    assert summary.fingerprint != fingerprint(digests), "with the names of four patients"
    with h5py.File(tmp_path / "lgg.h5", "r+") as file:
        names = file["patients"][()]
        names[-1] = names[1]
        file["patients"][...] = names
    with (
        Store(tmp_path / "lgg.h5") as store,
        pytest.raises(DataError, match="the content does not have its fingerprint"),
    ):
        store.verify()


class Arrays:
    """A reader of two volumes in memory: the second is the first, mirrored and with another mask."""

    channels, classes = ("T1",), ("background", "tumour")

    def volumes(self, source: Path) -> list[str]:
        return ["a", "b", "c"]

    def read(self, source: Path, volume: str) -> Scan:
        images = np.random.default_rng(ord(volume) if volume == "c" else 0).integers(
            0, 4000, (6, 1, 8, 8)
        )
        masks = np.arange(6)[:, None, None] == np.full((8, 8), 2 if volume == "b" else 3)
        return Scan(images[..., ::-1] if volume == "b" else images, masks)


def test_every_reader_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        conversion,
        "choose_scanner",
        lambda source, reading: ("arrays", partial(scan_volumes, Arrays())),
    )
    with pytest.raises(
        FaultyCohortError, match="b: 6 of 6 slices are also in a, as they are or mirrored"
    ) as refused:
        convert(tmp_path, tmp_path / "own.h5", workers=1)
    assert len(refused.value.faults) == 1


def test_skip_patient_leaves_out_the_later_name_alone(tmp_path: Path) -> None:
    source = write_cohort(tmp_path / "kaggle_3m")
    copy(source, FIRST, COPY)
    copy(source, "TCGA_AA_0001_20010102", "TCGA_ZZ_7777_20200101")
    (source / "TCGA_AA_0001_20010102" / "TCGA_AA_0001_20010102_2_mask.tif").unlink()
    summary = convert(source, tmp_path / "lgg.h5", on_fault="skip_patient", workers=1)
    assert summary.left_out == ["TCGA_AA_0001", "TCGA_ZZ_9999"]
    with Store(tmp_path / "lgg.h5") as store:
        assert store.patients == ["TCGA_AA_0000", "TCGA_AA_0002", "TCGA_ZZ_7777"], (
            "a scan whose twin is faulty stays"
        )


def test_two_equal_volumes_of_one_patient_are_a_warning(tmp_path: Path) -> None:
    source = write_cohort(tmp_path / "kaggle_3m")
    copy(source, FIRST, "TCGA_AA_0000_20200101")
    (warning,) = convert(source, tmp_path / "lgg.h5", workers=1).warnings
    assert warning == (
        f"TCGA_AA_0000_20200101: 3 of 3 slices are also in {FIRST}, as they are or "
        "mirrored; both are volumes of TCGA_AA_0000, "
        "so the scan counts twice"
    )


@given(arrays.arrays(np.uint8, (5, 7)), arrays.arrays(np.uint8, (5, 7)), st.booleans())
def test_a_hash_is_that_of_the_pixels_up_to_a_mirror(
    pixels: np.ndarray, other: np.ndarray, mirror: bool
) -> None:
    equal = np.array_equal(pixels, other) or np.array_equal(pixels[:, ::-1], other)
    assert (hash_slice(pixels) == hash_slice(other)) == equal
    assert hash_slice(pixels[:, ::-1]) == hash_slice(pixels)
    if not np.array_equal(pixels[::-1], pixels) and not np.array_equal(pixels[::-1, ::-1], pixels):
        assert hash_slice(pixels[::-1]) != hash_slice(pixels), "up and down is no mirror of a head"
