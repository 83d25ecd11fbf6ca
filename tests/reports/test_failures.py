"""Failure analysis: who is in which group, what is said of a group, and what is drawn."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainseg.core.errors import DataError
from brainseg.data.store import Store
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports import clinical, failures, failures_figure
from brainseg.reports.failures import (
    ALL,
    FALSE_POSITIVES,
    INSTITUTION,
    POSITION,
    SEQUENCES,
    THIRDS,
    VOLUME,
)

NAMES = [
    f"TCGA_{place}_{number:04d}_20000101"
    for number, place in enumerate(["A", "A", "B", "B", "B", "C"])
]
PATIENTS = pd.DataFrame(
    {
        "patient": NAMES,
        "role": "test",
        "slices": 9,
        "tumour_pixels": [60, 50, 40, 30, 20, 10],
        "dice": [0.9, 0.8, 0.7, 0.6, 0.02, 0.5],
        "hd95": np.nan,
    }
)
STORE = SimpleNamespace(
    path="x.h5",
    volumes=NAMES,
    channels=["pre", "FLAIR", "post"],
    copies=np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]], bool),
)
CLINICAL = pd.DataFrame(
    {
        "Patient": [name[:-9] for name in NAMES[1:]],
        "age": [31, 32, 33, 34, np.nan],
        "grade": [2.0, 1, 2, 2, 1],
        "site": ["left", "right", None, "left", "left"],
        "note": list("abcde"),
    }
)


def of(table, factor, column="patients"):
    rows = table[table.factor == factor]
    return dict(zip(rows.group, rows[column], strict=True))


def slices_of(patient, truth, predicted, overlap):
    counts = {"truth_pixels": truth, "predicted_pixels": predicted, "overlap": overlap}
    return pd.DataFrame({"patient": patient, "slice": range(len(truth)), **counts})


def test_each_patient_is_in_one_group_of_each_factor():
    table = failures.summarise_groups(PATIENTS, store=STORE)
    assert of(table, ALL) == {ALL: 6}
    assert of(table, VOLUME) == {"10 to 20": 2, "30 to 40": 2, "50 to 60": 2}
    assert of(table, INSTITUTION) == {"A": 2, "B": 3, "C": 1}
    assert of(table, SEQUENCES) == {"all there": 3, "no post": 1, "no pre": 1, "no pre or post": 1}
    assert table.columns.tolist() == [
        "factor",
        "group",
        "patients",
        "volumes",
        "mean",
        "low",
        "high",
        "median",
        "missed",
    ]


def test_a_group_has_its_mean_its_interval_and_its_missed_patients():
    row = failures.summarise_groups(PATIENTS).set_index("group").loc["B"]
    dice = PATIENTS.dice.to_numpy()[2:5]
    assert row["mean"] == pytest.approx(dice.mean()) and row["median"] == 0.6 and row["missed"] == 1
    assert (row.low, row.high) == pytest.approx(bootstrap(dice))
    assert row.low < row["mean"] < row.high


def test_one_patient_has_no_interval():
    row = failures.summarise_groups(PATIENTS).set_index("group").loc["C"]
    assert row["mean"] == 0.5 and np.isnan(row.low) and np.isnan(row.high)


def test_patients_without_a_tumour_are_apart_and_never_missed():
    empty = PATIENTS.assign(
        tumour_pixels=[60, 50, 40, 0, 0, 0], dice=[0.9, 0.8, 0.7, 1.0, 0.0, 0.0]
    )
    table = failures.summarise_groups(empty)
    assert of(table, VOLUME) == {"40": 1, "50": 1, "60": 1, "no tumour": 3}
    assert of(table, ALL, "missed") == {ALL: 0}
    assert list(of(failures.summarise_groups(empty.assign(tumour_pixels=0)), VOLUME)) == [
        "no tumour"
    ]


def test_clinical_columns_by_value_or_in_thirds_with_what_is_missing_as_its_own_group():
    table = failures.summarise_groups(PATIENTS, clinical=CLINICAL)
    assert of(table, "grade") == {"1": 2, "2": 3, "missing": 1}, (
        "as the codes are written, not 1.0; the first patient is not in the table"
    )
    assert of(table, "site") == {"left": 3, "right": 1, "missing": 2}
    assert of(table, "age") == {"31": 1, "32": 1, "33": 1, "34": 1, "missing": 2}
    many = pd.concat(
        [PATIENTS, PATIENTS.assign(patient=[f"TCGA_D_{n}_20000101" for n in range(6)])]
    )
    ages = pd.DataFrame(
        {
            "Patient": many.patient.str[:-9],
            "age": [*range(20, 31), np.nan],
            "name": [f"n{n}" for n in range(12)],
        }
    )
    table = failures.summarise_groups(many, clinical=ages.assign(code=[f"{n}x" for n in range(12)]))
    assert of(table, "age") == {"20 to 23": 4, "24 to 26": 3, "27 to 30": 4, "missing": 1}
    longer = pd.concat([many, PATIENTS.assign(patient=[f"TCGA_E_{n}_20000101" for n in range(6)])])
    named = pd.DataFrame(
        {"Patient": longer.patient.str[:-9], "name": [f"n{n}" for n in range(18)], "grade": 1}
    )
    assert set(failures.summarise_groups(longer, clinical=named).factor) == {
        ALL,
        VOLUME,
        INSTITUTION,
        "grade",
    }, "a column of names is no factor"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(0, 30), st.floats(-1e3, 1e3), st.just(np.nan)),
        min_size=1,
        max_size=40,
    )
)
def test_thirds_are_in_order_and_keep_equal_numbers_together(values):
    numbers = pd.Series(values, dtype=float)
    labels = pd.Series(failures.group_in_thirds(numbers, "missing"), index=numbers.index)
    assert ((labels == "missing") == numbers.isna()).all()
    found = numbers.groupby(labels.cat.codes).agg(["min", "max"]).dropna()
    assert len(found) <= 3 and (found["min"].to_numpy()[1:] > found["max"].to_numpy()[:-1]).all()
    assert numbers.isna().all() or labels[numbers.notna()].groupby(numbers).nunique().eq(1).all()
    if (
        numbers.is_unique
        and len(numbers) % 3 == 0
        and numbers.notna().all()
        and labels.nunique() == 3
    ):
        assert set(labels.astype(str).value_counts()) == {len(numbers) // 3}


def test_dice_by_position_is_over_the_pixels_of_that_third_of_the_tumour():
    #               outside  lowest      middle     highest    outside
    truth, hit = [0, 10, 10, 4, 20, 8, 8, 0], [0, 5, 0, 4, 20, 0, 0, 0]
    slices = slices_of(NAMES[0], truth, hit, hit)
    table = failures.summarise_groups(PATIENTS, slices.sample(frac=1, random_state=0))
    assert of(table, POSITION, "mean") == pytest.approx(
        dict(zip(THIRDS, [2 * 5 / 25, 1.0, 0.0], strict=True))
    )
    assert of(table, POSITION, "missed") == dict(zip(THIRDS, [0, 0, 1], strict=True))


@pytest.mark.parametrize(
    "found", [[1], [0, 2], [0, 1, 2], [0, 1, 1, 2], [0, 0, 1, 2, 2], [0, 0, 1, 1, 1, 2, 2]]
)
def test_thirds_of_few_slices_are_symmetric(found):
    count = len(found)
    for place in range(count):
        hit = np.eye(count, dtype=int)[place] * 10
        table = failures.summarise_groups(PATIENTS, slices_of(NAMES[0], [10] * count, hit, hit))
        assert [group for group, mean in of(table, POSITION, "mean").items() if mean] == [
            THIRDS[found[place]]
        ]


def test_false_positives_are_the_share_of_tumour_free_slices_of_each_patient():
    slices = pd.concat(
        [
            slices_of(NAMES[0], [0, 0, 9, 0, 0], [1, 0, 9, 0, 0], [0, 0, 9, 0, 0]),
            slices_of(NAMES[1], [9, 0], [0, 3], [0, 0]),
            slices_of("not scored", [0, 0], [1, 1], [0, 0]),
        ]
    )
    row = failures.summarise_groups(PATIENTS, slices).set_index("factor").loc[FALSE_POSITIVES]
    assert (
        row.patients == 2
        and row["mean"] == pytest.approx((1 / 4 + 1) / 2)
        and pd.isna(row["missed"])
    )


def test_the_worst_come_first_with_what_may_explain_them():
    table = failures.worst_patients(PATIENTS, 2, STORE)
    assert table.patient.tolist() == [NAMES[4], NAMES[5]] and table.institution.tolist() == [
        "B",
        "C",
    ]
    assert table.sequences.tolist() == ["all there"] * 2 and table.tumour_pixels.tolist() == [
        20,
        10,
    ]
    assert len(failures.worst_patients(PATIENTS, 99)) == 6


@pytest.mark.parametrize(
    ("patients", "said"),
    [
        (PATIENTS.iloc[:0], "no patient"),
        (pd.concat([PATIENTS, PATIENTS.iloc[:1]]), "twice: TCGA_A_0000_20000101"),
        (PATIENTS.assign(role=["train"] * 3 + ["test"] * 3), "test, train"),
        (PATIENTS.assign(patient=[*NAMES[:-1], "X_Y_Z"]), "not in x.h5: X_Y_Z"),
    ],
)
def test_what_would_not_be_a_failure_analysis_is_refused(patients, said):
    for refused in (failures.summarise_groups, failures.worst_patients):
        with pytest.raises(DataError, match=said):
            refused(patients, store=STORE)


def test_the_store_says_which_sequences_are_missing(phantom_file):
    store = Store(phantom_file)
    found = failures.missing_sequences(store)
    assert {name for name in found if found[name] != "all there"} == {
        name for name in store.volumes if int(name.split("_")[2]) % 5 == 3
    }
    assert set(found.values()) <= {"all there", "no pre-contrast", "no post-contrast"}


def test_numbers_that_read_the_same_are_one_group():
    assert set(failures.group_in_thirds(pd.Series([1 + 1e-9, 1 + 2e-9, 1 + 3e-9]), "missing")) == {
        "1"
    }


def test_a_clinical_column_cannot_pass_for_a_factor_of_ours():
    with pytest.raises(DataError, match="institution"):
        failures.summarise_groups(
            PATIENTS, clinical=CLINICAL.rename(columns={"site": "institution"})
        )


def test_clinical_table_reads_back(tmp_path):
    CLINICAL.to_csv(tmp_path / "data.csv", index=False)
    pd.testing.assert_frame_equal(
        clinical.read_clinical(tmp_path / "data.csv"), CLINICAL, check_dtype=False
    )


NO_TABLE = "not a table"
WRONG = {
    b"a,b\n1,2\n": "no column Patient",
    b"Patient\nx\nx\n": "two rows",
    b"\xff\xfe\x00": NO_TABLE,
    b"": NO_TABLE,
    None: NO_TABLE,
}


@pytest.mark.parametrize(("content", "said"), WRONG.items())
def test_what_is_no_clinical_table_is_refused_by_name(tmp_path, content, said):
    if content is not None:
        (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(DataError, match=said) as raised:
        clinical.read_clinical(tmp_path / "data.csv")
    assert "data.csv" in str(raised.value) and "\n" not in str(raised.value)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_figure_shows_every_group_and_names_the_worst(tmp_path, drawn):
    slices = slices_of(NAMES[0], [0, 9, 9, 9], [0, 9, 9, 9], [0, 9, 9, 9])
    written = failures_figure.write_failures(tmp_path, PATIENTS, slices, STORE, CLINICAL)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "failures.csv",
        "worst.csv",
        "pictures/failures.png",
    ]
    assert written[-1].read_bytes().startswith(b"\x89PNG")
    scatter, forest, *factors = drawn[0].axes
    assert texts(scatter) == ["TCGA_B_0004", "TCGA_C_0005", "TCGA_B_0003"]
    key = [text.get_text() for text in scatter.get_legend().get_texts()]
    assert key == ["all sequences", "no post", "no pre", "no pre or post", "missed"]
    table = pd.read_csv(tmp_path / "failures.csv", keep_default_na=False, dtype={"group": str})
    labels = [label.get_text() for axes in (forest, *factors) for label in axes.get_yticklabels()]
    assert labels == table.group[table.factor != ALL].tolist()
    missed = [
        text for text in texts(forest) if "missed" in text
    ]  # its third by volume, its institution, its sequences
    assert missed == ["0.26   n = 2, 1 missed", "0.44   n = 3, 1 missed", "0.47   n = 3, 1 missed"]


@pytest.mark.parametrize(
    "patients",
    [
        PATIENTS,
        PATIENTS.iloc[:1],
        PATIENTS.assign(tumour_pixels=0),
        PATIENTS.assign(patient=[*"abcdef"]),
    ],
)
def test_the_figure_of_little_is_drawn(tmp_path, drawn, patients):
    failures_figure.draw_failures(patients, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert drawn[0].axes[0].get_legend() is None or patients.dice.min() < 0.05
    failures_figure.draw_failures(
        patients, tmp_path / "b.png", clinical=CLINICAL[["Patient", "grade"]]
    )
    assert len(drawn[1].axes) in (2, 3)


def test_a_clinical_table_may_have_the_names_of_scans(tmp_path):
    """As patients.csv has them; the factors would all read "missing"."""
    CLINICAL.assign(Patient=[f"{name}_20000101" for name in CLINICAL.Patient]).to_csv(
        tmp_path / "dated.csv", index=False
    )
    dated = clinical.read_clinical(tmp_path / "dated.csv")
    assert dated.Patient.tolist() == CLINICAL.Patient.tolist()
    pd.testing.assert_frame_equal(
        failures.summarise_groups(PATIENTS, clinical=dated),
        failures.summarise_groups(PATIENTS, clinical=CLINICAL),
    )
