"""scripts/leak.py: the slices are dealt as it says, what it must not be given is refused, and it scores whom it says it scores."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainseg.config import DataConfig, FileSplitConfig, TrainConfig
from brainseg.core.errors import RequestError
from brainseg.data.split import Split, make_split
from brainseg.data.store import Store
from brainseg.runs.run_folder import RunFolder

specification = importlib.util.spec_from_file_location(
    "leak", Path(__file__).resolve().parents[1] / "scripts" / "leak.py"
)
assert specification is not None and specification.loader is not None
leak = importlib.util.module_from_spec(specification)
specification.loader.exec_module(leak)

TINY = [
    "data.phantom.patients=20",
    "data.phantom.slices=10",
    "data.phantom.size=32",
    "model.depth=2",
    "model.width=2",
    "tracking=none",
    "device=cpu",
    "augment=none",
]


def test_every_slice_is_dealt_to_one_part_with_its_pixels_and_its_volumes_percentiles(
    phantom_file, tmp_path
):
    path, split = leak.deal_slices(TrainConfig(data=DataConfig(path=str(phantom_file))), tmp_path)
    whole, apart = Store(phantom_file), Store(path)
    apart.verify()
    for volume, name in enumerate(whole.volumes):
        rows = np.arange(whole.first_slice[volume], whole.first_slice[volume + 1])
        found = [apart.volumes.index(name + end) for end in ("_train", "_validation")]
        places = np.concatenate(
            [np.arange(apart.first_slice[part], apart.first_slice[part + 1]) for part in found]
        )
        numbers = apart.slice_number[places]
        assert (
            sorted(numbers) == list(whole.slice_number[rows])
            and np.diff(apart.first_slice)[found[1]] == 2
        ), "2 of 8 are held out"
        for place, number in zip(places, numbers, strict=True):
            row = int(rows[whole.slice_number[rows] == number][0])
            assert (apart.images(place, place + 1) == whole.images(row, row + 1)).all()
            assert (apart.masks(place, place + 1) == whole.masks(row, row + 1)).all()
        for part in found:
            assert (apart.low[part] == whole.low[volume]).all() and (
                apart.high[part] == whole.high[volume]
            ).all()
            assert (apart.copies[part] == whole.copies[volume]).all()
    drawn = make_split(FileSplitConfig(path=str(split)), apart.patients)
    assert [len(drawn.train), len(drawn.validation), len(drawn.test)] == [10, 10, 0]
    before = path.stat().st_mtime_ns
    assert (
        leak.deal_slices(TrainConfig(data=DataConfig(path=str(phantom_file))), tmp_path)[0]
        .stat()
        .st_mtime_ns
        == before
    )


def test_a_limited_cohort_is_dealt_alone(phantom_file, tmp_path):
    path, _ = leak.deal_slices(
        TrainConfig(data=DataConfig(path=str(phantom_file), limit_patients=3)), tmp_path
    )
    assert {name.rsplit("_", 1)[0] for name in Store(path).volumes} == set(
        Store(phantom_file).volumes[:3]
    )


REFUSED = [
    "split=kfold",
    "split.seed=1",
    "data.context=1",
    "test=no",
    "resume=never",
    "+split.x=1",
    "epochs=0",
    "no=1",
]


@pytest.mark.parametrize("override", REFUSED)
def test_a_request_that_the_three_cannot_share_is_refused(override, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert leak.main([override]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {override.split('=')[0].lstrip('+')}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a whole run on a tiny phantom, its rows, and the overrides it was made with."""
    folder = tmp_path_factory.mktemp("leak")
    overrides = [
        *TINY,
        f"data.phantom.folder={folder}",
        f"output='{folder / 'it is'}'",
        "max_minutes=0.02",
    ]
    return folder / "it is", leak.run(overrides), overrides


def test_each_column_scores_the_patients_of_its_split(done):
    folder, table, _ = done
    splits = {
        name: Split.from_dict(json.loads((folder / name / "split.json").read_text()))
        for name in ("patient", "reference", "slice")
    }
    named = {name: set(part.patient.str[:-9]) for name, part in table.groupby("split")}
    assert (
        named["patient"] == named["patient, held-out slices"] == set(splits["patient"].test)
        and len(named["patient"]) == 3
    )
    assert named["reference"] == set(splits["reference"].validation) and len(named["slice"]) == 20
    seen = table.groupby("split").trained_on.sum().to_dict()
    shared = set(splits["reference"].train) & set(splits["reference"].validation)
    assert (
        seen == {"patient": 0, "patient, held-out slices": 0, "reference": len(shared), "slice": 20}
        and shared
    )
    assert table.groupby("split").slices.max().to_dict() == {
        "patient": 10,
        "patient, held-out slices": 2,
        "reference": 10,
        "slice": 2,
    }
    scored = pd.concat(
        [pd.read_csv(folder / name / "patients.csv").assign(split=name) for name in splits]
    )
    scored = scored.assign(patient=scored.patient.str.removesuffix("_validation"))
    both = table.merge(scored, on=["split", "patient"])
    assert len(both) == len(table) - 3 and both.dice_x.to_numpy() == pytest.approx(both.dice_y)


def test_the_first_training_sets_the_steps_of_all(done):
    folder, table, _ = done
    assert table.steps.nunique() == 1 and table.steps.iloc[0] > 0
    for name in ("patient", "reference", "slice"):
        last = (folder / name / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == table.steps.iloc[0]


def test_the_model_that_saw_no_slice_of_them_is_scored_on_the_slices_held_out(done):
    _, table, _ = done
    pair = table[table.split == "patient, held-out slices"].merge(
        table[table.split == "slice"], on="patient"
    )
    assert (pair.tumour_pixels_x == pair.tumour_pixels_y).all() and len(pair) == 3
    row = leak.summary(table).set_index("split")
    assert list(row.index) == list(leak.LABELS) and row.loc["patient", "unseen"] == pytest.approx(
        row.loc["patient", "mean"]
    )


def test_the_same_command_finds_what_is_done(done, monkeypatch):
    folder, table, overrides = done
    monkeypatch.setattr(leak.train, "fit", lambda *_: pytest.fail("trained again"))
    again = leak.run(overrides)
    pd.testing.assert_frame_equal(again, table)
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "leak.csv"), table.round(6), check_dtype=False
    )
    assert (folder / "leak.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RequestError, match="other settings"):
        leak.run([*overrides, "seed=1"])


def test_over_all_slices_the_honest_score_is_the_one_of_the_run(done, monkeypatch):
    folder, _, overrides = done
    monkeypatch.setattr(leak, "HELD_OUT", 1.0)
    found = (
        leak.scores_of_held_out(RunFolder(folder / "patient"), leak.compose(overrides))
        .set_index("patient")
        .dice
    )
    known = (
        pd.read_csv(folder / "patient" / "patients.csv")
        .query("role == 'test'")
        .set_index("patient")
        .dice
    )
    assert found.to_dict() == pytest.approx(known.to_dict(), abs=1e-6) and len(found) == 3
