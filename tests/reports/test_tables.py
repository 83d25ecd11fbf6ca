"""The table of metrics and patients.csv: what is written, from the file back."""

import csv
import math

import numpy as np
import pytest
from test_figures import score

from brainseg.evaluation.metrics import count_missed, is_missed, score_patient
from brainseg.reports.tables import metrics_table, read_scores, write_patients_csv, write_slices_csv


def test_table_puts_val_and_test_side_by_side():
    metrics = {
        "val/dice": 0.81234,
        "test/dice": 0.7,
        "val/hd95": 12.3456,
        "val/patients_missed": 2.0,
        "train/loss": 1e-5,
    }
    text = metrics_table(metrics, "run 1")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["run", "1"] and lines[2:] == [
        ["val", "test"],
        ["dice", "0.8123", "0.7000"],
        ["hd95", "12.35"],
        ["patients_missed", "2"],
        ["train/loss", "1.000e-05"],
    ]
    assert text.splitlines()[3].rindex("0.7000") + 6 == text.splitlines()[2].rindex("test") + 4, (
        "columns are aligned to the right"
    )


def test_table_of_an_evaluation_has_a_column_for_each_role():
    lines = metrics_table(
        {"unknown/dice": 0.5, "train/dice": 0.9, "train/hd95": 1.5}, "x"
    ).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["train", "unknown"],
        ["dice", "0.9000", "0.5000"],
        ["hd95", "1.5000"],
    ]


def test_table_of_anything_is_a_table():
    assert metrics_table({}, "nothing").startswith("nothing\n")
    assert "inf" in metrics_table({"val/hd95": math.inf}, "x")


def test_patients_csv_has_columns_of_each_class_and_missed_reads_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    truth = np.zeros((1, 8, 8), np.uint8)
    truth[0, :4], truth[0, 6, 6] = 1, 2
    classes = ("background", "oedema", "core")
    scores = [
        score_patient(name, prediction, truth, classes=classes)
        for name, prediction in (("a", truth), ("b", truth % 2))
    ]
    write_patients_csv([(one, "test") for one in scores], tmp_path / "patients.csv")
    table = pandas.read_csv(tmp_path / "patients.csv")
    assert (
        table["dice/oedema"].tolist() == [1, 1]
        and table["dice/core"].tolist() == [1, 0]
        and table.dice.tolist() == [1, 0.5]
    )
    assert table["tumour_pixels/core"].tolist() == [1, 1] and table[
        "predicted_pixels/core"
    ].tolist() == [1, 0]
    assert count_missed(table).tolist() == [is_missed(one) for one in scores] == [False, True]


def test_patients_csv_reads_back(tmp_path):
    scores = [
        score("TCGA_CS_1, a", 5),
        score("b", 0),
        score("c", 5, with_geometry=False, loss=0.25),
    ]
    write_patients_csv(
        list(zip(scores, ("train", "test", "unknown"), strict=True)),
        tmp_path / "out" / "patients.csv",
    )
    with open(tmp_path / "out" / "patients.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:9] == [
        "patient",
        "role",
        "slices",
        "tumour_pixels",
        "dice",
        "iou",
        "precision",
        "recall",
        "hd95",
    ]
    assert rows[0][:9] == [
        "TCGA_CS_1, a",
        "train",
        "2",
        "10",
        "0.666667",
        "0.500000",
        "1.000000",
        "0.500000",
        "1.000000",
    ]
    assert [line[8] for line in rows] == ["1.000000", "", ""], (
        "undefined and not measured are empty"
    )
    assert [line[header.index("loss")] for line in rows] == ["", "", "0.250000"]
    assert {len(line) for line in rows} == {len(header)}


def test_patients_keep_names_that_look_like_numbers_or_like_nothing(tmp_path):
    names = ["007", "NA", "1e3", "null", "12"]
    rows = [(score(name, dice_pixels=0), "test") for name in names]
    write_patients_csv(rows, tmp_path / "patients.csv")
    write_slices_csv({name: np.ones((2, 3), int) for name in names}, tmp_path / "slices.csv")
    read = read_scores(tmp_path / "patients.csv")
    assert (
        read.patient.tolist() == names and read.dice.tolist() == [0] * 5 and read.hd95.isna().all()
    )
    assert read_scores(tmp_path / "slices.csv").patient.tolist() == [
        name for name in names for _ in range(2)
    ]
