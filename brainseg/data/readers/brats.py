"""Reader of the data of the BraTS challenges from 2017 to 2024.

BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz   2017 to 2020, some below HGG and LGG
BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz              2021
BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz       from 2023: GLI MEN MET PED SSA GoAT
BraTS-MEN-RT-0000-1/BraTS-MEN-RT-0000-1_gtv.nii.gz       2024, radiotherapy
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from brainseg.core.errors import check
from brainseg.data.readers.base import Reading, list_some
from brainseg.data.readers.case import Case, CaseReader, ImageFile
from brainseg.data.readers.guess import sequence_of
from brainseg.data.readers.labels import parse_classes
from brainseg.data.readers.patterns import IMAGE_SUFFIXES, list_files, stem_of

FILE = re.compile(
    r"(?P<case>brats.*?)[_-](?P<part>flair|t1|t1ce|t2|t1n|t1c|t2w|t2f|seg|gtv)", re.IGNORECASE
)
# The last number of a case is its time point, from 2017 to 2019 and from 2023 on.
PATIENT = re.compile(r"(brats1[789]_.+?)_[0-9]+|(brats-.+-[0-9]+)-[0-9]+", re.IGNORECASE)
GLIOMA_TO_2021 = {"necrosis": 1, "oedema": 2, "enhancing": 4}
GLIOMA = {"necrosis": 1, "oedema": 2, "enhancing": 3, "resection cavity": 4}
CHILDREN_2023 = ("non-enhancing", "oedema", "enhancing")
CHILDREN_2024 = {"enhancing": 1, "non-enhancing": 2, "cystic": 3, "oedema": 4}
RADIOTHERAPY = {"tumour": 1}


def make_reader(source: Path, reading: Reading) -> CaseReader:
    """Return the reader of a challenge's data.

    Raises RequestError for data of two challenges with different classes.
    """
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    ignored: list[str] = []
    for path in list_files(source, IMAGE_SUFFIXES):
        match = FILE.fullmatch(stem_of(path.rpartition("/")[2]))
        folder = path.split("/")[-2:-1]
        if match:
            part = match["part"].lower()
            name = "mask" if part in ("seg", "gtv") else str(sequence_of(part))
            files[match["case"]][name].append(path)
        # One mask of 2020 has the date of its patient as its name, W39_1998.09.19_Segm.nii.
        elif (
            folder
            and folder[0].lower().startswith("brats")
            and "seg" in path.rpartition("/")[2].lower()
        ):
            files[folder[0]]["mask"].append(path)
        else:
            ignored.append(path)
    check(
        bool(files),
        "source",
        source,
        "holds no file with a name of BraTS",
        "as BraTS2021_00000_flair.nii.gz",
    )
    counts = {
        name: sum(name in case for case in files.values()) for name in ("T1", "T1c", "T2", "FLAIR")
    }
    channels = tuple(name for name, count in counts.items() if count)
    cases = [_case(source, name, files[name]) for name in sorted(files)]
    reader = CaseReader(cases, channels, onto=reading.onto, ignored=ignored)
    if reading.classes:
        reader.labels = parse_classes(reading.classes)
        return reader
    values = _values_of(source, list(files))
    reader.labels = parse_classes(values)
    if values is GLIOMA:
        reader.rename = _name_glioma_classes
    elif values is CHILDREN_2024:
        reader.rename = _name_paediatric_classes
    return reader


def is_dataset(source: Path) -> bool:
    """Return True if the source holds files with names of BraTS."""
    names = (stem_of(path.rpartition("/")[2]) for path in list_files(source, IMAGE_SUFFIXES))
    return any(FILE.fullmatch(name) for name in names)


def patient_of_case(name: str) -> str:
    """Return the patient of a case, such as BraTS-GLI-00000 for BraTS-GLI-00000-001."""
    match = PATIENT.fullmatch(name)
    return (match[1] or match[2]) if match else name


def _case(source: Path, name: str, files: Mapping[str, list[str]]) -> Case:
    """Return a case, with a fault for each sequence that has several files."""
    faults = {
        key: f"{len(paths)} files are {key}: {list_some(paths, 3)}"
        for key, paths in files.items()
        if len(paths) > 1
    }
    if "mask" not in files:
        faults["mask"] = "no file ends in seg (validation data have no masks)"
    mask_faults = (faults.pop("mask"),) if "mask" in faults else ()
    located = {key: ImageFile(source / paths[0]) for key, paths in files.items()}
    mask = located.pop("mask", None)
    return Case(name, patient_of_case(name), located, mask, tuple(faults.values()), mask_faults)


def _values_of(source: Path, names: list[str]) -> Mapping[str, int]:
    """Return the values of the classes in the masks, by the names of the cases.

    Raises RequestError if the cases have masks with different classes.
    """
    kinds = {kind: name for name in names for kind in [_kind_of(name)]}
    tables = {"to 2021": GLIOMA_TO_2021, "MEN-RT": RADIOTHERAPY, "PED": CHILDREN_2024}
    # Tables are compared by identity, because dictionaries are not hashable.
    chosen = {id(tables.get(kind, GLIOMA)): tables.get(kind, GLIOMA) for kind in kinds}
    rule = f"{list_some(kinds.values())} have masks with different classes"
    remedy = "prepare each challenge by itself, or give classes"
    check(len(chosen) == 1, "source", source, rule, remedy)
    return next(iter(chosen.values()))


def _kind_of(name: str) -> str:
    """Return the part of a challenge that a case belongs to, such as GLI or MEN-RT."""
    match = re.match(r"brats-(men-rt|[a-z]+)-", name, re.IGNORECASE)
    return match[1].upper() if match else "to 2021"


def _name_glioma_classes(pixels_by_class: np.ndarray) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes of 2024, without the cavity if no mask contains label 4, and no notes."""
    classes = parse_classes(GLIOMA).classes
    return (classes, []) if pixels_by_class[4] else (classes[:4], [])


def _name_paediatric_classes(pixels_by_class: np.ndarray) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes of BraTS-PED 2024, or of 2023 if no mask contains label 4, and notes."""
    classes = parse_classes(CHILDREN_2024).classes
    if pixels_by_class[4]:
        return classes, []
    note = "no mask holds label 4, so labels 1, 2, 3 are taken to be those of BraTS-PED 2023"
    return (classes[0], *CHILDREN_2023), [
        f"{note} ({', '.join(CHILDREN_2023)}); classes.NAME=LABEL overrides this"
    ]
