"""brainseg.verify: 0 differences on the run's own data, one line or the patient's name for everything that was changed."""

import json
import shutil
from pathlib import Path

import h5py
import pytest

from brainseg import verify
from brainseg.cli.main import run_command
from brainseg.data.store import Store


@pytest.fixture
def copied(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's run and data in a folder of their own; returns the data file."""
    shutil.copytree(project / "run", tmp_path / "run")
    shutil.copytree(project / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return next((tmp_path / "data").glob("*.h5"))


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Return the exit code and all that was printed."""
    with pytest.raises(SystemExit) as stop:
        run_command("verify", verify.run, verify.check_request, list(argv))
    shown = capsys.readouterr()
    return int(stop.value.code or 0), shown.out + shown.err


def patients_of(part: str) -> list[str]:
    return json.loads(Path("run/split.json").read_text())[part]


def flip_a_mask_pixel(path: Path, patient: str, keep_count: bool = False) -> str:
    """Flip one pixel of the patient's masks, as an editor of HDF5 files does; returns the volume."""
    with Store(path) as store:
        volume = store.patients.index(patient)
        name, row = store.volumes[volume], int(store.first_slice[volume])
        row += int(store.tumour_pixels[row : int(store.first_slice[volume + 1])].argmax())
    with h5py.File(path, "r+") as file:
        masks = file["masks"]
        masks[row, 0, 0, 0] = 1 - masks[row, 0, 0, 0]
        if keep_count:
            file["tumour_pixels"][row] += 1
    return name


def test_a_run_gives_its_scores_again(copied: Path, capsys) -> None:
    for argv in (["run=run"], ["run=run", f"data.path={copied}"]):
        code, shown = call(capsys, *argv)
        assert code == 0 and shown.endswith("verified: the largest difference is 0\n"), shown
        assert "files:         unchanged since the run ended" in shown
        assert shown.count("as in the run") == 3, "split, code and device"
        rows = [line for line in shown.splitlines() if line.startswith(("PHANTOM_", "mean of "))]
        scored = len(patients_of("validation")) + len(patients_of("test"))
        assert len(rows) == scored + 2 and all(row.endswith("  0") for row in rows)


def test_a_flipped_mask_pixel_is_found_with_its_patient(copied: Path, capsys) -> None:
    patient = patients_of("test")[0]
    volume = flip_a_mask_pixel(copied, patient)
    code, shown = call(capsys, "run=run", f"data.path={copied}", "tolerance=1")
    assert code == 1
    assert f"data differ:   {patient}\n" in shown and "does not have its fingerprint" in shown
    failed = shown.splitlines()[-1]
    assert failed.startswith("FAILED: ") and volume in failed, "a tolerance is not for the truth"
    assert f"{volume}  test" in shown and "tumour_pixels differs" in shown


def test_a_flipped_pixel_of_a_training_patient_is_found_though_no_score_changes(
    copied: Path, capsys
) -> None:
    patient = patients_of("train")[0]
    flip_a_mask_pixel(copied, patient, keep_count=True)
    code, shown = call(capsys, "run=run", f"data.path={copied}")
    assert code == 1 and f"data differ:   {patient}\n" in shown
    assert shown.endswith("FAILED: the scores are those of the run, but the data are not\n")


def test_what_was_edited_or_is_missing_is_said_in_one_line(copied: Path, capsys) -> None:
    table = Path("run/patients.csv")
    table.write_text(table.read_text().replace("test", "test", 1) + "\n")
    code, shown = call(capsys, "run=run")
    assert (code, shown) == (
        1,
        "error: run=run: patients.csv was changed since the run ended; restore the files\n",
    )
    code, shown = call(capsys, "run=run", "data.path=none.h5")
    assert code == 2 and shown.startswith("error: data.path=none.h5: no such file; ")
    assert shown.count("\n") == 1
    Path("run/checkpoints/best.pt").unlink()
    code, shown = call(capsys, "run=run")
    assert (code, shown) == (2, "error: run=run: best.pt is missing; restore the file\n")
    status = json.loads(Path("run/status.json").read_text())
    Path("run/status.json").write_text(json.dumps(status | {"state": "killed"}))
    code, shown = call(capsys, "run=run")
    assert (code, shown) == (2, "error: run=run: is killed, not finished; resume it first\n")
    code, shown = call(capsys, "run=nothing")
    assert code == 2 and "holds no run" in shown


def test_a_run_of_an_earlier_version_is_verified_as_far_as_it_goes(copied: Path, capsys) -> None:
    Path("run/SHA256SUMS").unlink()
    code, shown = call(capsys, "run=run")
    assert code == 0 and "files:         not verified, the run recorded no SHA256SUMS" in shown
    summary = json.loads(Path("run/summary.json").read_text())
    summary["metrics"]["test/dice"] += 0.01
    Path("run/summary.json").write_text(json.dumps(summary))
    code, shown = call(capsys, "run=run")
    assert code == 1 and shown.endswith("differ by more than tolerance=0: mean of test\n")
    assert call(capsys, "run=run", "tolerance=0.011")[0] == 0
    split = json.loads(Path("run/split.json").read_text())
    split["train"], split["test"] = split["test"], split["train"]
    Path("run/split.json").write_text(json.dumps(split))
    code, shown = call(capsys, "run=run")
    assert code == 2 and "do not have this hash, so the split was edited" in shown


def test_data_without_the_runs_patients_are_refused_in_one_line(copied: Path, capsys) -> None:
    from brainseg.config import PhantomConfig
    from brainseg.data.phantom.cohort import ensure_cohort

    other = ensure_cohort(PhantomConfig(patients=3, slices=6, size=32, seed=7, folder="other"))
    code, shown = call(capsys, "run=run", f"data.path={other}")
    assert code == 1 and "the data lack PHANTOM_" in shown.splitlines()[-1]
