"""docs/own_data.md: its commands run as they stand there, on a cohort in the layout that each names."""

import re
import shlex
from pathlib import Path

import cohorts
import numpy as np
import pytest
from scans import THRESHOLD, threshold_weights

from brainseg import predict
from brainseg import prepare as command
from brainseg.cli.main import run_command
from brainseg.data.store import Store

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "own_data.md").read_text()
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python ")
]
COMMANDS = [line for line in LINES if "brainseg.predict" not in line]
WRITERS = {
    "brats": cohorts.write_brats,
    "Task01_BrainTumour": cohorts.write_decathlon,
    "bids": cohorts.write_bids,
    "niftis": cohorts.write_folders,
    "slices": cohorts.write_colour,
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(COMMANDS) == 7
    monkeypatch.chdir(tmp_path)
    module, *arguments = shlex.split(line)[2:]
    assert module == "brainseg.prepare"
    settings = dict(argument.split("=", 1) for argument in arguments)
    source = WRITERS[settings["source"]](Path(settings["source"]))
    if source.name == "niftis":  # the page's masks have other values than the cohort's
        one_class = "classes.tumour" not in settings and "classes.core" not in settings
        for path in source.glob("*/*_seg.nii.gz"):
            index = int(path.parent.name[1:])
            masks = cohorts.make_patient(index)[1]
            cohorts.write_image(path, np.minimum(masks, 1) if one_class else masks, index)
    size = [] if "size" in settings else ["size=32"]
    with pytest.raises(SystemExit) as stop:
        run_command("prepare", command.run, command.check_request, [*arguments, *size, "workers=1"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    with Store(settings["output"]) as store:
        assert len(store.volumes) == 6 and store.masks(0, store.shape[0]).any()


def test_the_command_that_segments_new_cases_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cohorts.write_folders(Path("niftis"))
    (line,) = [line for line in LINES if line not in COMMANDS]
    arguments = shlex.split(line)[3:]
    assert arguments[0] == "checkpoint=runs/RUN"
    arguments[0] = f"checkpoint={threshold_weights(tmp_path / 'w.pt')}"
    with pytest.raises(SystemExit) as stop:
        run_command(
            "predict", predict.run, predict.check_request, [*arguments, *THRESHOLD, "viewer=0"]
        )
    assert not stop.value.code
    assert len(list(tmp_path.glob("predictions/P?/P?_mask.nii.gz"))) == cohorts.PATIENTS
