"""A run on MLflow's pages: few params, tags and metrics, and what a user typed there is kept."""

import json
from pathlib import Path

import pytest
from tracked_runs import START, client, points, the_run, write_run

from brainseg.tracking.chart_layout import COLUMNS, experiment_tags
from brainseg.tracking.contents import COLOURS, colour_of, description_of, is_logged, params_of
from brainseg.tracking.mirror import Mirror
from brainseg.tracking.upload import RunUpload, upload_run

DESCRIPTION, COLOUR = "mlflow.note.content", "mlflow.runColor"
COMMAND = "`python -m brainseg.train model.depth=4"


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def change_record(folder: Path, **facts: object) -> None:
    (folder / "run.json").write_text(json.dumps(record_of(folder) | facts))


def test_params_are_the_core_settings_and_the_typed_ones(store: str, tmp_path: Path) -> None:
    typed = [
        *("experiment=fast", "optimizer=sgd", "model.options.x=1", "clip_norm=2"),
        *("epochs=3", "resume=auto", "tracking.uri=x", "output=here", "data.path=a.h5", "note=b"),
    ]
    folder = write_run(tmp_path / "run", store, overrides=typed)
    (folder / "config.yaml").write_text(
        "epochs: 3\nresume: auto\nclip_norm: 2\nema_decay: null\nbatch_size: 8\n"
        "model: {name: unet, norm: batch}\noptimizer: {name: sgd, lr: 0.1, weight_decay: 0}\n"
    )
    assert params_of(folder, record_of(folder)) == {
        "model.name": "unet",
        "optimizer.name": "sgd",
        "optimizer.lr": "0.1",
        "batch_size": "8",
        "experiment": "fast",
        "model.options.x": "1",
        "clip_norm": "2",
        "model.parameters": "161985",
    }


@pytest.mark.parametrize(
    ("metric", "logged"),
    [
        ("val/dice", True),
        ("test/hd95", True),
        ("val/dice/NCR/NET", True),
        ("train/loss", True),
        ("best/epoch", True),
        ("system/cpu_cores", True),
        ("val/iou", False),
        ("test/hd95_undefined", False),
        ("val/recall/oedema", False),
        ("unknown/dice_tumour_slices", False),
    ],
)
def test_scores_that_nobody_reads_stay_in_the_folder(metric: str, logged: bool) -> None:
    assert is_logged(metric) == logged


def test_the_description_has_the_note_and_the_command(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, note="too slow", tags=["pilot", "paper 1"])
    upload_run(folder)
    assert the_run(store).data.tags[DESCRIPTION] == f"too slow\n\n{COMMAND}`"
    assert the_run(store).data.tags["tags"] == "pilot, paper 1"
    change_record(folder, note="fast enough", overrides=["model.depth=4", "epochs=5", "note=x"])
    upload_run(folder)
    assert the_run(store).data.tags[DESCRIPTION] == f"fast enough\n\n{COMMAND} epochs=5`"
    change_record(folder, note="")
    upload_run(folder)
    assert the_run(store).data.tags[DESCRIPTION] == f"{COMMAND} epochs=5`"


def test_a_description_that_a_user_typed_is_kept_until_the_run_gets_a_note() -> None:
    record = {"overrides": ["seed=1"]}
    written = description_of(record)
    assert written == "`python -m brainseg.train seed=1`"
    longer = description_of({"overrides": ["seed=1", "epochs=9"]}, written)
    assert longer == "`python -m brainseg.train seed=1 epochs=9`"
    for typed in ("my own words", f"my own words\n\n{written}"):
        assert description_of(record, typed) == typed
        assert description_of(record | {"note": "own words"}, typed) == typed
        assert description_of(record | {"note": "new"}, typed) == f"new\n\n{written}"


def test_jobs_have_distinct_colours_and_a_chosen_colour_stays(store: str, tmp_path: Path) -> None:
    assert len(set(COLOURS)) == len(COLOURS) == 16
    assert colour_of({"job": 17}) == COLOURS[1] and colour_of({"job": None}) is None
    folder = write_run(tmp_path / "run", store, sweep="s1", job=1)
    upload_run(folder)
    run = the_run(store)
    assert run.data.tags[COLOUR] == COLOURS[1]
    client(store).set_tag(run.info.run_id, COLOUR, "#123456")
    upload_run(folder)
    assert the_run(store).data.tags[COLOUR] == "#123456"


def test_the_chart_of_a_sweep_is_there_from_its_first_job_on(store: str, tmp_path: Path) -> None:
    swept = ["model.depth", "model", "epochs", "absent"]
    upload_run(write_run(tmp_path / "run", store, sweep="s1", swept=swept))
    varied = ["params.`model.depth`", "params.`model.name`", "tags.`epochs`"]
    (stored,) = experiment_tags("s1", varied)
    layout = json.loads(client(store).get_experiment_by_name("brainseg").tags[stored])
    assert layout["selectedColumns"] == [*varied, *COLUMNS]
    # The bars have the order of the table.
    assert layout["orderByKey"] == "metrics.`best/val_dice`" and layout["orderByAsc"] is False


def test_the_best_dice_comes_first_and_is_sent_while_the_run_trains(
    store: str, tmp_path: Path
) -> None:
    """MLflow lists the metrics of a run in the order of their arrival."""
    folder = write_run(tmp_path / "run", store, epochs=1)
    tracker = RunUpload(folder)
    tracker.update()
    assert list(the_run(store).data.metrics)[:2] == ["best/val_dice", "best/epoch"]
    write_run(folder, store, epochs=3)
    tracker.update()
    assert the_run(store).data.metrics["best/val_dice"] == 0.9
    times = [(step, value, time) for step, value, time in points(store, "best/val_dice")]
    assert sorted(times) == [(0, 0.5, START + 5000), (0, 0.9, START + 10_000)]


def test_the_scores_of_an_extended_run_replace_the_former_ones(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store, state="finished")
    tracker = RunUpload(folder)
    tracker.update()
    summary = {"best": {"epoch": 2, "val/dice": 0.9}, "metrics": {"test/dice": 0.7}}
    (folder / "summary.json").write_text(json.dumps(summary))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"ended": START + 90_000}))
    tracker.update()
    upload_run(folder)
    assert the_run(store).data.metrics["test/dice"] == 0.7
    assert [step for step, _, _ in points(store, "test/dice")] == [0, 0]
    assert [step for step, _, _ in points(store, "best/val_dice")] == [0], "the same value"


def test_a_picture_is_sent_when_it_was_drawn(store: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", store)
    mirror = Mirror(folder)
    mirror.update()
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "validation.png").write_text("first")
    (pictures / ".curves.1.partial.png").write_text("half")
    mirror.update(final=True)
    files = Path(the_run(store).info.artifact_uri.removeprefix("file://")) / "pictures"
    assert [path.name for path in files.iterdir()] == ["validation.png"]
    sent = (files / "validation.png").stat().st_mtime_ns
    mirror.update(final=True)
    assert (files / "validation.png").stat().st_mtime_ns == sent, "only when it has changed"
    (pictures / "validation.png").write_text("second")
    mirror.update(final=True)
    assert (files / "validation.png").read_text() == "second"


def test_a_model_has_the_name_of_its_run(store: str, tmp_path: Path) -> None:
    upload_run(write_run(tmp_path / "run", store, state="finished", label="lr=1e-3 a.h5 50%"))
    (model,) = client(store).search_logged_models([the_run(store).info.experiment_id])
    assert model.name == "lr=1e-3 a_h5 50_"
