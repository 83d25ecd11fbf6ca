"""The clinical table of a cohort, such as data.csv of the public set.

Rows are matched to patients by name, in any of the spellings that `patient_key` unifies.
"""

import difflib
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.core.errors import DataError, shorten_error
from brainseg.data.fault_report import enumerate_names
from brainseg.data.volume import patient_of

if TYPE_CHECKING:
    import pandas as pd

REMEDY = "give a table with a column Patient, such as the public set's data.csv"


def read_clinical(path: str | Path, patients: Sequence[str] = ()) -> "pd.DataFrame":
    """Return the table of a CSV file: the column Patient, and each further column as a factor.

    Columns are separated by commas, semicolons or tabs. Numbers between semicolons may have a
    decimal comma. The text is UTF-8 with or without a byte order mark, UTF-16 with one, else
    Latin-1. Raises DataError if the file is no such table, if it has a patient twice, or if it has
    none of `patients`.
    """
    import pandas as pd

    try:
        text = _decode(Path(path).read_bytes())
        separator = _separator(text)
        table = pd.read_csv(
            StringIO(text), sep=separator, dtype={"Patient": str}, skipinitialspace=True
        )
    except (OSError, ValueError) as error:
        # The file can't be read, or its content is no text or no table.
        reason = shorten_error(error)
        raise DataError(f"{path} is not a table ({reason}); {REMEDY}") from error
    table.columns = table.columns.str.strip()
    if "Patient" not in table:
        columns = enumerate_names([str(column) for column in table.columns])
        raise DataError(f"{path} has no column Patient among {columns}; {REMEDY}")
    table["Patient"] = table.Patient.map(lambda name: patient_of(name.strip()), na_action="ignore")
    if separator == ";":
        table = table.apply(_with_decimal_points)
    named = table[table.Patient.notna()]
    repeated = named.Patient[named.Patient.map(patient_key).duplicated()].tolist()
    if repeated:
        raise DataError(
            f"{path} has two rows for patients {enumerate_names(repeated)}; keep one row of each"
        )
    if len(patients):
        _check_match(path, table, patients)
    return table


def patient_key(name: str) -> str:
    """Return a patient's name in a form that is equal for all spellings of the name.

    Dashes become underscores, case is ignored, and a date at the end is removed.
    """
    return patient_of(str(name).strip().replace("-", "_")).casefold()


def match_clinical(table: "pd.DataFrame", patients: Sequence[str]) -> "pd.DataFrame":
    """Return the clinical rows of `patients` in their order.

    A patient without a row gets missing values.
    """
    named = table[table.Patient.notna()]
    rows = named.set_index(named.Patient.map(patient_key)).drop(columns="Patient")
    return rows.reindex([patient_key(patient) for patient in patients])


def _check_match(path: str | Path, table: "pd.DataFrame", patients: Sequence[str]) -> None:
    """Raise DataError with the most similar name if none of the patients has a row."""
    names = {patient_key(name): name for name in table.Patient.dropna()}
    keys = [patient_key(patient) for patient in patients]
    if not names.keys().isdisjoint(keys):
        return
    # Cutoff 0 accepts even a poor match, so that the error shows how the table spells its names.
    nearest = difflib.get_close_matches(keys[0], names, n=1, cutoff=0)
    example = (
        f", and the name nearest to {patient_of(patients[0])} is {names[nearest[0]]}"
        if nearest
        else ""
    )
    rule = (
        f"none of the {len(keys)} scored patients is among the {len(names)} in its "
        f"column Patient{example}"
    )
    raise DataError(
        f"clinical={path}: {rule}; write the names as the cohort's folders are named, "
        "or leave clinical out"
    )


def _decode(content: bytes) -> str:
    """Return the text of a table as spreadsheets save it.

    Raises UnicodeDecodeError for UTF-16 that is cut short.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    # UTF-8 is tried before Latin-1, because Latin-1 decodes any bytes.
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _separator(text: str) -> str:
    """Return the separator under which the header has a column Patient, else a comma."""
    header = next(iter(text.splitlines()), "")
    names = {
        separator: [name.strip(' "') for name in header.split(separator)] for separator in ",;\t"
    }
    return next((separator for separator, columns in names.items() if "Patient" in columns), ",")


def _with_decimal_points(column: "pd.Series") -> "pd.Series":
    """Return a column of numbers with decimal commas as numbers, and any other column as it is."""
    import pandas as pd

    if column.name == "Patient" or pd.api.types.is_numeric_dtype(column):
        return column
    numbers = pd.to_numeric(column.astype(str).str.replace(",", ".", regex=False), errors="coerce")
    return (
        numbers if (numbers.notna() == column.notna()).all() and numbers.notna().any() else column
    )
