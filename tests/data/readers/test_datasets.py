"""nnU-Net, Decathlon, BIDS and BraTS: names, classes, patients, and what is refused."""

import json
from pathlib import Path

import cohorts
import numpy as np
import pytest

from brainseg.config import HoldoutConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.readers import bids, brats, nnunet
from brainseg.data.readers.base import NAME, Reading
from brainseg.data.split import make_split
from brainseg.data.store import Store

SIZED = Reading(size=(32, 32))


def dataset(source: Path, **content: object) -> Path:
    """Write dataset.json, an empty image and an empty mask of one case."""
    for path in ("imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).touch()
    cohorts.describe(
        source,
        **{"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "tumour": 1}, **content},
    )
    return source


@pytest.mark.parametrize(
    ("content", "classes", "values"),
    [
        (
            {"labels": {"background": 0, "oedema": 1, "core": 2}},
            ("background", "oedema", "core"),
            {0: 0, 1: 1, 2: 2},
        ),
        (
            {"labels": {"0": "background", "1": "oedema", "2": "core"}},
            ("background", "oedema", "core"),
            {0: 0, 1: 1, 2: 2},
        ),
        (
            {"labels": {"background": 0, "tumour": [1, 2], "cyst": [3]}},
            ("background", "tumour", "cyst"),
            {0: 0, 1: 1, 2: 1, 3: 2},
        ),
        (
            {"labels": {"0": "Background", "4": "T1-ce+gd/x"}},
            ("background", "T1-ce-gd-x"),
            {0: 0, 4: 1},
        ),
        ({"labels": {"bg": 0, "tumour": 1, "ignore": 9}}, ("background", "tumour"), {0: 0, 1: 1}),
        (
            {"labels": {"background": 0, "a+b": 1, "a/b": 2}},
            ("background", "a-b", "a-b 2"),
            {0: 0, 1: 1, 2: 2},
        ),
    ],
)
def test_labels_are_read_in_both_directions_and_named_for_metrics(
    tmp_path: Path, content: dict[str, object], classes: tuple[str, ...], values: dict[int, int]
) -> None:
    reader = nnunet.make_reader(dataset(tmp_path, **content), Reading())
    assert reader.classes == classes and reader.labels.values == values
    assert all(NAME.fullmatch(name) for name in classes)
    changed = set(classes) - {str(key) for pair in content["labels"].items() for key in pair}  # type: ignore[attr-defined]
    assert all(any(f"is called {name}" in note for note in reader.notes) for name in changed)


@pytest.mark.parametrize(
    ("key", "names", "channels"),
    [
        ("channel_names", {"0": "T2-FLAIR", "1": "T1w"}, ("FLAIR", "T1w")),
        ("modality", {"0": "FLAIR", "1": "T1-ce+gd", "2": "t1gd"}, ("FLAIR", "T1-ce-gd", "t1gd")),
        ("channel_names", {str(n): f"c{n}" for n in range(11)}, tuple(f"c{n}" for n in range(11))),
        ("channel_names", {"0": "++", "1": "MRI", "2": "MRI"}, ("channel 0", "MRI", "channel 2")),
    ],
)
def test_channels_keep_their_order_and_get_names_for_metrics(
    tmp_path: Path, key: str, names: dict[str, str], channels: tuple[str, ...]
) -> None:
    reader = nnunet.make_reader(
        dataset(
            tmp_path, **{"channel_names": None, key: names} if key == "modality" else {key: names}
        ),
        Reading(),
    )
    assert reader.channels == channels


REGIONS = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"labels": REGIONS, "regions_class_order": [1, 2, 3]},
            "dataset.json has regions that overlap (whole tumour, core); here each pixel has one class; "
            "name the classes, as classes.whole_tumour=1 classes.core=2 classes.enhancing=3",
        ),
        ({"file_ending": ".png"}, "says file_ending .png, which are pictures; use reader=images"),
        ({"channel_names": {}}, "has no channel_names"),
        ({"labels": {"background": 0, "tumour": "x y"}}, "are no numbers"),
        ({"file_ending": ".nrrd"}, "imagesTr holds no file that ends in .nrrd"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        nnunet.make_reader(dataset(tmp_path, **content), Reading())
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_regions_can_be_replaced_by_classes(tmp_path: Path) -> None:
    source = cohorts.write_nnunet(tmp_path)
    description = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(
        json.dumps({**description, "labels": {"background": 0, "all": [1, 2], "core": [2]}})
    )
    reading = Reading(classes={"tumour": [1, 2]}, size=(32, 32))
    convert(source, tmp_path / "own.h5", workers=1, reading=reading)
    with Store(tmp_path / "own.h5") as store:
        assert np.array_equal(store.masks(0, 4)[:, 0], cohorts.make_patient(0)[1] > 0)


def test_a_channel_or_mask_that_is_missing_is_named(tmp_path: Path) -> None:
    source = cohorts.write_nnunet(tmp_path / "source")
    (source / "imagesTr" / "P1_0000.nii.gz").unlink()  # T1: FLAIR stands in for it
    (source / "imagesTr" / "P2_0003.nii.gz").unlink()
    (source / "labelsTr" / "P3.nii.gz").unlink()
    with pytest.raises(FaultyCohortError) as refused:
        convert(source, tmp_path / "own.h5", workers=1, reading=SIZED)
    assert refused.value.faults == [
        "P2: no FLAIR; only FLAIR can stand in for another sequence",
        "P3: labelsTr holds no P3.nii.gz; no mask",
    ]


def test_sessions_of_a_subject_are_never_parted(tmp_path: Path) -> None:
    source = cohorts.write_bids(tmp_path / "source")
    convert(source, tmp_path / "own.h5", workers=1, reading=SIZED)
    with Store(tmp_path / "own.h5") as store:
        assert (
            store.volumes[:2] == ["sub-P0_ses-01", "sub-P0_ses-02"]
            and store.patients[:2] == ["sub-P0"] * 2
        )
        for seed in range(20):
            split = make_split(
                HoldoutConfig(seed=seed, train=0.5, validation=0.25, test=0.25), store.patients
            )
            parts = [set(part) for part in (split.train, split.validation, split.test)]
            assert sum("sub-P0" in part for part in parts) == 1 and sum(map(len, parts)) == 5
        store.verify()


def test_the_patient_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """The same volumes of other patients are other data: a split of one does not fit the other."""
    source = cohorts.write_folders(tmp_path / "source")
    prints = []
    for name in ("{patient}/*", "{patient}*/*"):
        reading = Reading(
            "nifti",
            {"FLAIR": f"{name}_flair.nii.gz"},
            mask=f"{name}_seg.nii.gz",
            size=(32, 32),
            classes={"tumour": [1, 2]},
        )
        prints.append(convert(source, tmp_path / "own.h5", workers=1, reading=reading).fingerprint)
    assert len(set(prints)) == 1
    reading = Reading(
        **{
            **vars(reading),
            "sequences": {"FLAIR": "{patient}{session}/*_flair.nii.gz"},
            "mask": "{patient}{session}/*_seg.nii.gz",
        }
    )
    assert (
        convert(source, tmp_path / "own.h5", workers=1, reading=reading).fingerprint not in prints
    )


def test_several_runs_or_masks_are_faults_that_patterns_settle(tmp_path: Path) -> None:
    source = cohorts.write_bids(tmp_path / "source")
    anat = source / "sub-P2" / "ses-01" / "anat"
    flair, masks = cohorts.make_patient(2)
    (anat / "sub-P2_ses-01_FLAIR.nii.gz").unlink()
    for run, name in ((1, "T2w"), (2, "FLAIR")):
        cohorts.write_image(
            anat / f"sub-P2_ses-01_acq-3D_run-{run}_FLAIR.nii.gz",
            flair[:, ["T1", "T1c", "T2w", "FLAIR"].index(name)],
            2,
        )
    cohorts.write_image(
        anat / "sub-P2_ses-01_label-lesion_mask.nii.gz", (masks > 0).astype(np.uint8), 2
    )
    with pytest.raises(FaultyCohortError) as refused:
        convert(source, tmp_path / "own.h5", workers=1, reading=SIZED)
    (fault,) = refused.value.faults
    assert (
        "sub-P2_ses-01: 2 images are FLAIR: " in fault
        and "choose by sequences.FLAIR='*_PART_*'" in fault
    )
    assert "2 masks: " in fault and "choose by mask=" in fault
    sequences = {"FLAIR": "sub-P[!2]*_FLAIR.nii.gz", "T1": "*_ses-??_T1w.nii.gz"}
    reading = Reading(sequences=sequences, mask="*_desc-lesion_dseg.nii.gz", size=(32, 32))
    with pytest.raises(FaultyCohortError, match="sub-P2_ses-01: no FLAIR"):
        convert(source, tmp_path / "own.h5", workers=1, reading=reading)
    sequences["FLAIR"] = "*_FLAIR.nii.gz"
    (anat / "sub-P2_ses-01_acq-3D_run-1_FLAIR.nii.gz").unlink()
    convert(source, tmp_path / "own.h5", workers=1, reading=reading)
    with Store(tmp_path / "own.h5") as store:
        assert np.array_equal(store.images(*store.rows_of("sub-P2_ses-01"))[:, 0], flair[:, 3])


def test_bids_without_sessions_and_with_masks_beside_the_images(tmp_path: Path) -> None:
    for subject, index in {"01": 0, "02": 2}.items():
        images, masks = cohorts.make_patient(index)
        anat = tmp_path / "source" / f"sub-{subject}" / "anat"
        cohorts.write_image(anat / f"sub-{subject}_FLAIR.nii", images[:, 3], 0)
        cohorts.write_image(
            anat / f"sub-{subject}_label-lesion_mask.nii", (masks > 0).astype(np.uint8), 0
        )
    summary = convert(tmp_path / "source", tmp_path / "own.h5", workers=1)
    assert summary.reader == "bids" and [volume.name for volume in summary.volumes] == [
        "sub-01",
        "sub-02",
    ]
    assert list(summary.channels) == ["FLAIR"] and list(summary.classes) == ["background", "tumour"]


def test_a_table_of_labels_without_names_is_refused(tmp_path: Path) -> None:
    source = cohorts.write_bids(tmp_path)
    (source / "derivatives" / "lesions" / "desc-lesion_dseg.tsv").write_text(
        "value\tlabel\n1\toedema\n"
    )
    with pytest.raises(DataError, match=r"desc-lesion_dseg.tsv: needs columns index and name"):
        bids.make_reader(source, Reading())


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000"),
        ("BraTS-GLI-00000-001", "BraTS-GLI-00000"),
        ("BraTS-MET-00123-012", "BraTS-MET-00123"),
        ("BraTS-PED-00001-000", "BraTS-PED-00001"),
        ("BraTS-MEN-RT-0012-1", "BraTS-MEN-RT-0012"),
        ("BraTS-GoAT-00005", "BraTS-GoAT-00005"),
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAB"),
        ("Brats17_2013_10_1", "Brats17_2013_10"),
    ],
)
def test_the_patient_of_a_case_of_brats(case: str, patient: str) -> None:
    assert brats.patient_of_case(case) == patient


NECROSIS, OEDEMA, ENHANCING = "necrosis", "oedema", "enhancing"
GLIOMA = ["background", NECROSIS, OEDEMA, ENHANCING]


@pytest.mark.parametrize(
    ("name", "parts", "values", "classes"),
    [
        (
            "HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_{}.nii.gz",
            "flair t1ce seg",
            [1, 2, 4],
            GLIOMA,
        ),
        ("BraTS20_Training_001/BraTS20_Training_001_{}.nii", "flair t1ce seg", [1, 2, 4], GLIOMA),
        ("BraTS2021_00000/BraTS2021_00000_{}.nii.gz", "flair t1ce seg", [1, 2, 4], GLIOMA),
        ("BraTS-GLI-00000-000/BraTS-GLI-00000-000-{}.nii.gz", "t2f t1c seg", [1, 2, 3], GLIOMA),
        (
            "BraTS-GLI-02063-101/BraTS-GLI-02063-101-{}.nii.gz",
            "t2f t1c seg",
            [1, 2, 3, 4],
            [*GLIOMA, "resection cavity"],
        ),
        (
            "BraTS-PED-00001-000/BraTS-PED-00001-000-{}.nii.gz",
            "t2f t1c seg",
            [1, 2, 3],
            ["background", "non-enhancing", OEDEMA, ENHANCING],
        ),
        (
            "BraTS-PED-00001-000/BraTS-PED-00001-000-{}.nii.gz",
            "t2f t1c seg",
            [1, 2, 3, 4],
            ["background", ENHANCING, "non-enhancing", "cystic", OEDEMA],
        ),
        (
            "BraTS-MEN-RT-0000-1/BraTS-MEN-RT-0000-1_{}.nii.gz",
            "t1c gtv",
            [1],
            ["background", "tumour"],
        ),
    ],
)
def test_classes_of_each_challenge(
    tmp_path: Path, name: str, parts: str, values: list[int], classes: list[str]
) -> None:
    images, _ = cohorts.make_patient(0)
    mask = np.zeros(images[:, 0].shape, np.uint8)
    for place, value in enumerate(values):
        mask[2, 10, 10 + place] = value
    for part in parts.split():
        slices = mask if part in ("seg", "gtv") else images[:, 3]
        cohorts.write_image(tmp_path / "source" / name.format(part), slices, 0)
    summary = convert(tmp_path / "source", tmp_path / "own.h5", workers=1)
    assert summary.reader == "brats" and list(summary.classes) == classes
    with Store(tmp_path / "own.h5") as store:
        assert store.masks(2, 3)[0, 0, 10, 10 : 10 + len(values)].tolist() == list(
            range(1, len(values) + 1)
        )
        store.verify()
    (volume,) = summary.volumes
    assert volume.name == Path(name).parent.name


def test_the_misnamed_mask_of_2020_is_found_and_challenges_are_not_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "BraTS20_Training_355"
    folder.mkdir()
    for name in ("BraTS20_Training_355_flair.nii", "W39_1998.09.19_Segm.nii"):
        (folder / name).touch()
    (case,) = brats.make_reader(tmp_path, Reading()).cases
    assert (
        case.mask is not None
        and case.mask.path.name == "W39_1998.09.19_Segm.nii"
        and not case.faults
    )
    (tmp_path / "BraTS-GLI-00000-000-t2f.nii.gz").touch()
    with pytest.raises(
        RequestError, match="have masks with different classes; prepare each challenge by itself"
    ):
        brats.make_reader(tmp_path, Reading())


def test_validation_data_without_masks_say_so(tmp_path: Path) -> None:
    cohorts.write_image(
        tmp_path / "source" / "BraTS2021_00001_flair.nii.gz", cohorts.make_patient(0)[0][:, 3], 0
    )
    with pytest.raises(
        FaultyCohortError,
        match=r"BraTS2021_00001: no file ends in seg \(validation data have no masks\)",
    ):
        convert(tmp_path / "source", tmp_path / "own.h5", workers=1)


def test_a_mask_pattern_that_matches_no_file_of_a_bids_dataset_is_refused(tmp_path: Path) -> None:
    source = cohorts.write_bids(tmp_path)
    with pytest.raises(
        RequestError, match=r"mask=.*desc-none.* matches no file of the source; give"
    ):
        bids.make_reader(source, Reading(mask="*_desc-none_dseg.nii.gz"))
