"""predict refuses in one line, with exit code 2 and nothing created; hostile files say what they are before a pixel is decoded."""

import errno
import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
from scans import THRESHOLD, scan, threshold_weights, write_dicom, write_nifti
from test_predict import call
from test_store import cohort
from tiffs import write_cohort, write_slice

from brainseg.core.errors import RequestError
from brainseg.data.cases.find import find_cases
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.nifti_writer import write_nifti as write_mask
from brainseg.data.store_writer import write_store
from brainseg.data.volume import CHANNELS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start from, with sound and unsound sources."""
    monkeypatch.chdir(tmp_path)
    threshold_weights(tmp_path / "w.pt")
    write_cohort(tmp_path / "kaggle_3m")
    write_slice(tmp_path / "odd", "a", 1, None, np.zeros((4, 4), np.uint8))
    for name, shift in (
        ("flair.nii", 0.0),
        ("same.nii", 0.0),
        ("moved.nii", 3.0),
        ("pre_contrast.nii", 0.0),
    ):
        write_nifti(tmp_path / name, scan(), shift=shift)
    write_nifti(tmp_path / "turned.nii", scan(), "RAS")
    write_nifti(tmp_path / "small.nii", scan()[:10])
    write_dicom(tmp_path / "dicom", scan(), "T2 flair")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "000.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)
    (tmp_path / "text.nii").write_text("no NIfTI")
    write_store(tmp_path / "w.h5", *cohort())
    h5py.File(tmp_path / "kspace.h5", "w").close()
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "four.tif",
        np.zeros((3, 8, 8, 4), np.uint8),
        photometric="minisblack",
        planarconfig="contig",
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("not to be mixed up")
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["input=nowhere"], "input=nowhere: no such file or folder"),
        (["input=[]"], "must be a path, or a list of paths"),
        (["input=[null,null,null]"], "must be a path, or a list of paths"),
        (["input=7"], "input=7: no such file or folder"),
        (["input=[flair.nii,nowhere.nii,same.nii]"], "input=nowhere.nii: no such file or folder"),
        (
            ["input=[flair.nii,same.nii]"],
            "2 files; the checkpoint needs 3 sequences, in this order: pre-contrast, FLAIR, post-contrast",
        ),
        (["input=[same.nii,null,null]"], "only FLAIR can stand in for another"),
        (["input=[same.nii,flair.nii,same.nii]"], "are the same file"),
        (
            ["input=[flair.nii,same.nii,moved.nii]"],
            "input=flair.nii: is given as pre-contrast, and named after FLAIR; the order is pre-",
        ),
        (["input=[null,pre_contrast.nii,null]"], "is given as FLAIR, and named after pre-contrast"),
        (
            ["input=kspace.h5"],
            "input=kspace.h5: not a scan, and not a file that prepare made; save each sequence as NIfTI",
        ),
        (["input=w.h5"], "input=w.h5: a file of prepared slices, not a scan; brainseg.evaluate"),
        (
            ["input=[same.nii,flair.nii,moved.nii]"],
            "input=moved.nii: post-contrast and pre-contrast lie on different grids (a corner lies 3 mm away)",
        ),
        (
            ["input=[same.nii,flair.nii,turned.nii]"],
            "lie on different grids (a corner lies 29.4 mm away)",
        ),
        (
            ["input=[same.nii,flair.nii,small.nii]"],
            "lie on different grids (10 x 16 x 9 voxels instead of 20 x 16 x 9)",
        ),
        (["input=[same.nii,flair.nii,grey.tif]"], "all must be of one format"),
        (
            ["input=text.nii"],
            "input=text.nii: not a NIfTI file, whatever its name says; read are NIfTI, DICOM,",
        ),
        (
            ["input=w.pt"],
            "input=w.pt: this format is not read (weights of a network); give them as checkpoint",
        ),
        (
            ["input=pre_contrast.nii"],
            "input=pre_contrast.nii: would be taken for FLAIR, and is named after pre-contrast; if it is FLAIR, "
            "say so with sequences.FLAIR=pre_contrast.nii",
        ),
        (["input=broken"], "holds no slices, NIfTI files or DICOM series that can be read"),
        (["input=thesis"], "holds no slices, NIfTI files or DICOM series that can be read"),
        (["input=odd"], "a mask without a slice"),
        (["input=four.tif"], "4 channels; the checkpoint needs 3"),
        (
            ["input=dicom", "sequences.FLAIR=T1"],
            "sequences.FLAIR=T1: fits 0 of the series; must fit one; there are: T2 flair",
        ),
        (
            ["input=dicom", "sequences.T1=flair"],
            "sequences=T1: the checkpoint knows no such sequence; known: pre-contrast",
        ),
        (["input=dicom", "sequences.post-contrast=flair"], "only FLAIR can stand in for another"),
        (
            ["input=dicom", "sequences.FLAIR=[a]"],
            "sequences.FLAIR=[a]: must be a single text, not a list",
        ),
        (
            ["input=flair.nii", "sequences.FLAIR=post"],
            "sequences.FLAIR=post: fits 0 of the series; must fit one; there are: flair.nii",
        ),
        (
            ["input=kaggle_3m", "output=thesis"],
            "already contains files, and brainseg.predict did not write them",
        ),
        (["input=kaggle_3m", "output=thesis/thesis.txt"], "is a file"),
        (
            ["input=kaggle_3m", "output=kaggle_3m/masks"],
            "must not lie within the input, nor the input within it",
        ),
        (
            ["input=kaggle_3m/TCGA_AA_0000_20010101", "output=kaggle_3m"],
            "must not lie within the input, nor the input within it",
        ),
        (["input=kaggle_3m", "checkpoint=nothing.pt"], "checkpoint=nothing.pt: no such file"),
        (["input=kaggle_3m", "batch_size=0"], "must be at least 1"),
        (["input=kaggle_3m", "data.context=1"], "its weights are not those of model="),
        (["input=kaggle_3m", "inference.threshold=2"], "must lie between 0 and 1"),
    ],
)
def test_a_wrong_request_is_one_line_and_creates_nothing(
    overrides: list[str], rule: str, folder: Path, capfd
) -> None:
    before = sorted(folder.rglob("*"))
    call("checkpoint=w.pt", *THRESHOLD, *overrides, code=2)
    said = capfd.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and rule in said.err, (
        said.err
    )
    assert said.out == "" and sorted(folder.rglob("*")) == before


def header(**fields: tuple[str, int, tuple]) -> Callable[[bytes], bytes]:
    """Change fields of a NIfTI header: name=(format, offset, values)."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for form, offset, values in fields.values():
            struct.pack_into(form, changed, offset, *values)
        return bytes(changed)

    return change


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (header(size=("<3h", 42, (32767, 32767, 32767))), "at most 268,435,456 are read"),
        (
            header(size=("<3h", 42, (2000, 300, 300))),
            "of the 360,000,352 bytes that its header asks for",
        ),
        (
            header(size=("<h", 40, (4,)), four=("<h", 48, (2,))),
            "holds 2 volumes .* choose one with volume=N, from 1 to 2",
        ),
        (header(start=("<f", 108, (1e9,))), "that its header asks for"),
        (lambda content: content[:-1000], "truncated"),
        (lambda content: content[:100], "truncated within its header"),
    ],
)
def test_a_nifti_header_that_lies_is_refused_before_its_voxels_are_read(
    packed: bool, change: Callable, rule: str, tmp_path: Path
) -> None:
    content = change(write_nifti(tmp_path / "a.nii", scan()).read_bytes())
    path = tmp_path / ("b.nii.gz" if packed else "b.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(RequestError, match=rule):
        find_cases(str(path), {}, CHANNELS)


def test_a_packed_bomb_is_not_unpacked_and_a_torn_one_is_found(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", scan())
    content = path.read_bytes()
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as file:
        file.write(content)
        for _ in range(200):
            file.write(bytes(2**20))
    assert find_cases(str(tmp_path / "bomb.nii.gz"), {}, CHANNELS)[0].read().images.shape == (
        9,
        3,
        16,
        20,
    )
    packed = gzip.compress(content)
    (tmp_path / "torn.nii.gz").write_bytes(packed[:-20])
    with pytest.raises(RequestError, match="truncated or damaged"):
        find_cases(str(tmp_path / "torn.nii.gz"), {}, CHANNELS)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), tmp_path / "complex.nii"
    )
    with pytest.raises(RequestError, match="voxels are complex numbers; save their magnitude"):
        find_cases(str(tmp_path / "complex.nii"), {}, CHANNELS)
    pages = np.zeros((3, 8, 8), np.float32)
    pages[1, 2, 2] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", pages, photometric="minisblack")
    request = [
        f"checkpoint={threshold_weights(tmp_path / 'w.pt')}",
        f"input={tmp_path / 'nan.tif'}",
        f"output={tmp_path / 'out'}",
    ]
    call(*request, *THRESHOLD, code=1)


def test_a_tiff_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint8), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        place = file.pages[1].tags["ImageLength"].valueoffset
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, place, 4000)
    path.write_bytes(content)
    with pytest.raises(RequestError, match="page 2: "):
        find_cases(str(path), {}, CHANNELS)
    tifffile.imwrite(path, np.zeros((2, 8, 8), np.float64), photometric="minisblack")
    with pytest.raises(RequestError, match="pixels are float64"):
        find_cases(str(path), {}, CHANNELS)
    tifffile.imwrite(path, np.zeros((2, 3, 8, 8), np.uint8), imagej=True, metadata={"axes": "ZCYX"})
    assert find_cases(str(path), {}, CHANNELS)[0].read().images.shape == (2, 3, 8, 8), (
        "by ImageJ's axes"
    )


def test_a_full_disk_is_an_error_that_names_the_file_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source, weights, kept = (
        write_cohort(tmp_path / "kaggle_3m"),
        threshold_weights(tmp_path / "w.pt"),
        os.replace,
    )
    request = [f"checkpoint={weights}", f"input={source}", f"output={tmp_path / 'out'}", *THRESHOLD]

    def full(source: str, target: Path) -> None:
        if "TCGA_AA_0001" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        kept(source, target)

    monkeypatch.setattr(os, "replace", full)
    call(*request, code=1)
    said = capfd.readouterr().err.splitlines()
    assert (
        len(said) == 1
        and said[0].startswith("error: ")
        and "TCGA_AA_0001" in said[0]
        and os.strerror(errno.ENOSPC) in said[0]
    )
    assert not list((tmp_path / "out").rglob("*partial*"))
    monkeypatch.setattr(os, "replace", kept)
    call(*request)
    assert "2 made, 1 done before" in capfd.readouterr().out


def test_a_nifti_file_that_was_not_written_whole_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"mask\.nii\.gz"):
        write_mask(
            tmp_path / "mask.nii.gz", np.ones((5, 4, 3), np.uint8), Grid((5, 4, 3), np.eye(4))
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "case"),
    [
        (["P1_pre.nii", "P1_flair.nii", "P1_post.nii"], "P1"),
        (["BraTS20_001_t1.nii", "BraTS20_001_flair.nii", "BraTS20_001_t1ce.nii"], "BraTS20_001"),
        (["pre.nii", "flair.nii", "post.nii"], "scans"),
    ],
)
def test_a_list_of_files_is_called_what_their_names_begin_with(
    names: list[str], case: str, tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    paths = [str(write_nifti(tmp_path / "scans" / name, scan())) for name in names]
    (found,) = find_cases(paths, {}, CHANNELS)
    assert found.name == case


def test_another_patient_does_not_take_the_place_of_the_first(folder: Path, capfd) -> None:
    for file in (
        "a/scans/flair.nii",
        "b/scans/t2_flair.nii",
    ):  # one file alone is called by its own name
        write_nifti(folder / file, scan())
        call("checkpoint=w.pt", *THRESHOLD, f"input=[null,{file},null]", "output=out")
    said = capfd.readouterr().out
    assert (
        "note: out contains 1 folder of earlier requests, such as flair, that the tables and pages leave out"
        in said
    )
    assert {path.parent.name for path in (folder / "out").glob("*/prediction.json")} == {
        "flair",
        "t2_flair",
    }
    assert (
        "sequences:     pre-contrast: missing, FLAIR: b/scans/t2_flair.nii, post-contrast: missing"
        in said
    )
    for file in ("x1.nii", "x2.nii", "y1.nii", "y2.nii"):
        write_nifti(folder / "one" / file, scan())
    call("checkpoint=w.pt", *THRESHOLD, "input=[one/x1.nii,one/x2.nii,null]", "output=two")
    before = (folder / "two" / "one" / "one_mask.nii.gz").read_bytes()
    capfd.readouterr()
    call("checkpoint=w.pt", *THRESHOLD, "input=[one/y1.nii,one/y2.nii,null]", "output=two", code=2)
    said = capfd.readouterr().err
    assert (
        f"output=two: one in it was made from other files: {folder}/one/x1.nii, {folder}/one/x2.nii; choose another folder"
        in said
    )
    assert (folder / "two" / "one" / "one_mask.nii.gz").read_bytes() == before


def test_two_patients_whose_files_have_one_name_are_kept_apart(folder: Path, capfd) -> None:
    request = ("checkpoint=w.pt", *THRESHOLD, "output=out")
    for patient, brightness in (("P1", 1), ("P2", 2)):
        write_nifti(folder / patient / "flair.nii.gz", scan() * brightness)
    call(*request, "input=P1/flair.nii.gz")
    before = (folder / "out" / "flair" / "flair_mask.nii.gz").read_bytes()
    call(*request, "input=P2/flair.nii.gz", code=2)
    assert (
        f"flair in it was made from other files: {folder}/P1/flair.nii.gz; choose another folder"
        in capfd.readouterr().err
    )
    assert (folder / "out" / "flair" / "flair_mask.nii.gz").read_bytes() == before
    (folder / "P1").rename(folder / "moved")
    call(*request, "input=moved/flair.nii.gz")
    assert "0 made, 1 done before" in capfd.readouterr().out, (
        "the same bytes in another place are the same patient"
    )


def test_a_series_alone_in_a_folder_is_not_taken_for_what_it_is_not_named_after(
    folder: Path, capfd
) -> None:
    write_dicom(folder / "post", scan(), "T1 post-contrast")
    call("checkpoint=w.pt", *THRESHOLD, "input=post", "output=out", code=2)
    assert "would be taken for FLAIR, and is named after post-contrast" in capfd.readouterr().err
