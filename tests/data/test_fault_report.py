"""A report of thousands of faults fits a screen, and says how many there are of each kind."""

from pathlib import Path

import pytest
from tiffs import write_cohort

from brainseg.data.conversion import FaultyCohortError, convert
from brainseg.data.fault_report import enumerate_names, summarise_faults


def test_thousands_of_faults_of_one_kind_are_five_lines_and_a_count() -> None:
    faults = [
        f"TCGA_{p}/TCGA_{p}_{n}.tif: mask values 0, {n}; must be 0 and 255"
        for p in range(131)
        for n in range(30)
    ][:3929]
    report = summarise_faults(faults)
    assert report == [*faults[:5], "... and 3,924 more like these, 3,929 in 131 volumes"]


def test_kinds_are_told_apart_and_few_faults_are_all_listed() -> None:
    few = [f"a/a_{n}.tif: no mask" for n in range(6)]
    many = [
        f"b{n}: its images are named b{n}_1_<number>.tif, not after the folder" for n in range(9)
    ]
    assert summarise_faults([*few, *many]) == [
        *few,
        *many[:5],
        "... and 4 more like these, 9 in 9 volumes",
    ]
    assert summarise_faults([]) == []


def test_many_kinds_are_counted() -> None:
    report = summarise_faults([f"a/a_1.tif: fault {'x' * number}" for number in range(1, 31)])
    assert len(report) == 21 and report[-1] == "... and 10 of 10 other kinds"


def test_names_are_a_list_that_ends() -> None:
    assert enumerate_names(["a", "b"]) == "a, b"
    assert enumerate_names([str(n) for n in range(25)]).endswith("18, 19 and 5 more")


def test_the_whole_list_is_kept_for_a_program(tmp_path: Path) -> None:
    source = write_cohort(tmp_path / "source", patients=4)
    for path in source.glob("*/*_mask.tif"):
        path.unlink()
    with pytest.raises(FaultyCohortError) as refused:
        convert(source, tmp_path / "lgg.h5", workers=1)
    assert len(refused.value.faults) == 14
    first, *lines = str(refused.value).splitlines()
    assert first.endswith("14 faults; nothing was written") and len(lines) == 6
    assert lines[-1].strip() == "... and 9 more like these, 14 in 4 volumes"
