"""Clinical tables as spreadsheets and archives write them: separators, encodings, spellings of names; and which fit nobody."""

from pathlib import Path

import pandas as pd
import pytest

from brainseg.core.errors import DataError
from brainseg.reports.clinical import match_clinical, read_clinical

PATIENTS = ["TCGA_CS_4941", "TCGA_CS_4942_19970222", "TCGA_DU_5849"]
TABLE = pd.DataFrame(
    {"Patient": ["TCGA_CS_4941", "TCGA_CS_4942"], "age": [67.5, 44.25], "gender": ["müßig", "1"]}
)


def matched(path: Path) -> list[list]:
    return match_clinical(read_clinical(path, PATIENTS), PATIENTS).to_numpy().tolist()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_a_table_is_read_whatever_saved_it(tmp_path: Path, separator: str, encoding: str) -> None:
    TABLE.to_csv(
        tmp_path / "data.csv", index=False, sep=separator, encoding=encoding, lineterminator="\r\n"
    )
    pd.testing.assert_frame_equal(read_clinical(tmp_path / "data.csv"), TABLE)


def test_decimal_commas_between_semicolons_are_numbers(tmp_path: Path) -> None:
    TABLE.assign(grade=[1, None]).to_csv(tmp_path / "data.csv", index=False, sep=";", decimal=",")
    table = read_clinical(tmp_path / "data.csv")
    assert table.age.tolist() == [67.5, 44.25] and table.gender.tolist() == ["müßig", "1"]


def test_quoted_fields_and_spaces_in_the_header_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('"Patient" ; "age"\n"TCGA_CS_4941"; 67\n')
    assert read_clinical(tmp_path / "data.csv").to_dict("list") == {
        "Patient": ["TCGA_CS_4941"],
        "age": [67],
    }


@pytest.mark.parametrize(
    "names",
    [
        ["TCGA-CS-4941", "TCGA-CS-4942"],
        ["tcga_cs_4941", "TCGA_CS_4942 "],
        ["TCGA_CS_4941_19960909", "TCGA-CS-4942-19970222"],
    ],
)
def test_a_patient_is_known_by_every_spelling(tmp_path: Path, names: list[str]) -> None:
    TABLE.assign(Patient=names).to_csv(tmp_path / "data.csv", index=False)
    known, second, unknown = matched(tmp_path / "data.csv")
    assert known == [67.5, "müßig"] and second == [44.25, "1"] and pd.isna(unknown).all()


def test_two_spellings_of_one_patient_are_there_twice(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("Patient,age\nTCGA_CS_4941,1\nTCGA-CS-4941,2\n")
    with pytest.raises(
        DataError, match="has two rows for patients TCGA-CS-4941; keep one row of each"
    ):
        read_clinical(tmp_path / "data.csv")


def test_a_table_of_other_patients_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("Patient,age\nCS_4941,1\nUPENN_0001,2\n")
    with pytest.raises(
        DataError, match="none of the 3 scored patients is among the 2 in its column Patient"
    ) as refused:
        read_clinical(tmp_path / "data.csv", PATIENTS)
    assert "the name nearest to TCGA_CS_4941 is CS_4941; write the names as" in str(refused.value)
    assert len(read_clinical(tmp_path / "data.csv")) == 2


def test_a_table_without_the_column_lists_those_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("bcr_patient_barcode,age\nTCGA-CS-4941,1\n")
    with pytest.raises(
        DataError,
        match="no column Patient among bcr_patient_barcode, age; give a table with a column Patient",
    ):
        read_clinical(tmp_path / "data.csv")
