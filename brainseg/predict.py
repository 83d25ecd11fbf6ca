"""Segment scans: TIFF slices or stacks, NIfTI, DICOM.

    python -m brainseg.predict checkpoint=runs/NAME input=kaggle_3m                        every patient of a folder
    python -m brainseg.predict checkpoint=runs/NAME input=[pre.nii.gz,flair.nii.gz,post.nii.gz]
    python -m brainseg.predict checkpoint=[runs/a,runs/b] input=dicom sequences.FLAIR=flair       an ensemble

The same command again leaves alone what is done. Where masks are there it scores, by the code of evaluate.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from brainseg.cli.main import run_command
from brainseg.config import PredictConfig
from brainseg.core.errors import DataError, RequestError
from brainseg.data.cases.find import check_input, find_cases
from brainseg.data.cases.study import InputCase
from brainseg.data.memory_store import MemoryStore
from brainseg.data.volume import main_channel, patient_of
from brainseg.device import choose_device
from brainseg.prediction import output_folder, viewer
from brainseg.prediction import pictures as prediction_report
from brainseg.prediction.output_folder import CasePrediction
from brainseg.prediction.segmenter import Segmenter
from brainseg.prediction.trained_model import (
    TrainedModel,
    check_checkpoint_exists,
    inference_of,
    load_members,
    members_that_saw,
    patient_role,
    short_name,
)
from brainseg.reports import predictions, tables
from brainseg.reports.overlays import Case
from brainseg.runs.code_version import code_version

log = logging.getLogger("brainseg")


def run(config: PredictConfig) -> int:
    """Segment every study that is not done, write, and print; returns 1 if one could not be read, else 0."""
    start, output = time.perf_counter(), Path(config.output)
    device = choose_device(
        dataclasses.replace(config.device, compile=False)
    )  # to compile takes longer than a study does
    members = load_members(config.checkpoint, config.data_config, config.model)
    segmenter = Segmenter(
        members, inference_of(members, config.inference), device, config.batch_size
    )
    studies = find_cases(
        config.input, config.sequences, segmenter.channels, config.volume, segmenter.classes
    )
    output_folder.check_output(output, [Path(path) for path in config.paths])
    settings = _settings(config, segmenter)
    output_folder.check_free(output, studies, settings)
    facts = {
        "checkpoint": config.checkpoint,
        "uid": [member.stored.get("uid") for member in members],
        "device": device.resolved,
        "inference": settings["inference"],
        "input": config.input,
        "trained_on": _training_data(members),
        "sequences": {study.name: dict(study.assignment) for study in studies},
    }
    output_folder.begin(output, facts)

    found: list[CasePrediction] = []
    failed: dict[str, str] = {}
    made = 0
    print(output_folder.NOTICE)
    for line in [*_training_data(members), *_assigned(studies, segmenter.channels)]:
        print(line)
    for study in tqdm(
        studies, "predict", unit="study", leave=False, disable=None
    ):  # None: not into a log file
        try:
            digest = output_folder.digest_of(settings, study)
            one = output_folder.is_complete(output / study.name, digest)
            if one is None:
                one, made = _segmented(study, segmenter, config, digest), made + 1
            found.append(one)
        except (
            DataError,
            RequestError,
            FloatingPointError,
        ) as error:  # of this study; the others are none the worse
            failed[study.name] = str(error)
    leaky = _leaky(found, members)
    facts |= {
        "studies": len(studies),
        "made": made,
        "failed": failed,
        "leaky": leaky,
        "notes": _by_note(found),
    }
    metrics = output_folder.conclude(output, found, facts)
    if config.overlays and found:
        scored = any(one.score is not None for one in found)
        thumbnails = [output / one.name / "thumbnail.png" for one in found]
        prediction_report.contact_sheet(
            thumbnails, segmenter.classes, scored, output / "contact_sheet.png"
        )
    if config.viewer and found:
        network = " + ".join(map(short_name, config.checkpoint))
        by_name = {study.name: study for study in studies}
        viewer.write_viewer(output, by_name, found, segmenter.classes, config.viewer, network)
    for line in _said(found, made, failed, metrics, leaky, time.perf_counter() - start):
        print(line)
    pictures = [
        name
        for name, asked in (
            ("contact_sheet.png", config.overlays),
            ("viewer.html (opens offline)", config.viewer),
        )
        if asked
    ]
    if found:
        print(
            f"masks:         {output / found[0].name}/*_mask.*"
            + (f", and of {len(found) - 1} more" if len(found) > 1 else "")
        )
    files = [
        "volumes.csv",
        "summary.json",
        *(["patients.csv"] if metrics else []),
        *(pictures if found else []),
    ]
    print(f"written to {output}: a folder a study, {', '.join(files)}")
    if others := output_folder.other_files_in(output, studies):
        kept = tables.format_count(len(others), "folder")
        print(
            f"note: {kept} of earlier requests in {output}, as {others[0]}: not in these tables and pages"
        )
    for name, reason in failed.items():
        log.error("error: %s: %s", name, reason)
    return int(bool(failed))


def _segmented(
    study: InputCase, segmenter: Segmenter, config: PredictConfig, digest: str
) -> CasePrediction:
    """One study from its pixels to its folder."""
    scan = study.read()
    store = MemoryStore(study.name, scan, study.channels, segmenter.classes)
    scored = scan.masks is not None
    one = segmenter(store, scored)
    folder = Path(config.output) / study.name
    files = study.write(
        folder,
        one.prediction,
        one.probability if config.probabilities else None,
        len(store.classes) > 2,
    )
    spacing = [float(side) for side in scan.spacing] if scan.spacing is not None else None
    voxels = output_folder.voxels_of(one.prediction, store.classes)
    role, notes = (
        patient_role(store.patients[0], segmenter.members, store, scored),
        [*study.notes, *_notes(store, segmenter)],
    )
    predictions.write_predictions(
        folder / output_folder.MASKS,
        [predictions.Prediction.of(study.name, role, one.prediction, None)],
    )
    files.append(folder / output_folder.MASKS)
    shape, score = list(one.prediction.shape), one.score if scored else None
    source = output_folder.files_of(study)
    prediction = CasePrediction(
        study.name,
        digest,
        {},
        shape,
        spacing,
        voxels,
        role,
        notes,
        score,
        source,
        study.voxel_millilitres,
    )
    if config.overlays:
        channel = main_channel(store.channels)
        truth = one.truth if scored else one.prediction
        case = Case(
            study.name,
            one.score.dice,
            scan.images,
            truth,
            one.prediction,
            channel,
            classes=store.classes,
        )
        files += prediction_report.write_pictures(case, scored, _caption(prediction), folder)
    prediction = dataclasses.replace(
        prediction, files={path.name: output_folder.sha256(path) for path in files}
    )
    prediction.write(folder)  # last: it says that the others are whole
    return prediction


def _notes(store: MemoryStore, segmenter: Segmenter) -> list[str]:
    """What is unusual about a volume, a line each."""
    slices, _, height, width = store.shape
    used = [
        (index, name) for index, name in enumerate(store.channels) if name in segmenter.channels
    ]
    notes = [
        f"no {name} (FLAIR stands in for it, as in the public set)"
        for index, name in used
        if store.copies[0, index]
    ]
    notes += [
        f"constant {name} (gives zeros)"
        for index, name in used
        if store.low[0, index] >= store.high[0, index]
    ]
    if slices == 1:
        notes.append(
            "a single slice: intensities are scaled by the whole volume, so that a slice alone looks different to the network"
        )
    known = segmenter.members[0].image_size
    if known and not all(
        2 / 3 < side / trained < 1.5 for side, trained in zip((height, width), known, strict=True)
    ):
        notes.append(
            f"{height}x{width} pixels, trained on {known[0]}x{known[1]}: nothing is resampled, so heads differ in size"
        )
    return notes


def _training_data(members: Sequence[TrainedModel]) -> list[str]:
    """Return a line for each data file that a member's checkpoint says it was trained on."""
    lines = []
    for member in members:
        path = member.config.data.path if member.config else None
        fingerprint = str(member.stored.get("fingerprint", ""))
        if path or fingerprint:
            details = f" (fingerprint {fingerprint[:12]})" if fingerprint else ""
            lines.append(f"trained on:    {Path(path).name if path else 'a phantom'}{details}")
    return list(dict.fromkeys(lines))


def _assigned(studies: Sequence[InputCase], channels: Sequence[str]) -> list[str]:
    """Return a line that says where each sequence comes from, for each way that the studies say so.

    Of more than ten ways the first ten are listed, and summary.json holds all.
    """
    lines = []
    for study in studies:
        if set(channels).isdisjoint(study.assignment):
            # A case that cannot be read is named by its error.
            continue
        places = {channel: study.assignment.get(channel, "missing") for channel in channels}
        if "mask" in study.assignment:
            places["mask to score by"] = study.assignment["mask"]
        lines.append(
            "sequences:     "
            + ", ".join(f"{channel}: {place}" for channel, place in places.items())
        )
    lines = list(dict.fromkeys(lines))
    more = [f"sequences:     {len(lines) - 10} more, in summary.json"] if len(lines) > 10 else []
    return [*lines[:10], *more]


def _settings(config: PredictConfig, segmenter: Segmenter) -> dict[str, Any]:
    """All but the study itself that the files depend on."""
    return {
        "checkpoint": [member.sha256 for member in segmenter.members],
        "model": [
            dataclasses.asdict(member.config or config)["model"] for member in segmenter.members
        ],
        "data": [[member.channels, member.data.context] for member in segmenter.members],
        "inference": dataclasses.asdict(segmenter.inference),
        "device": segmenter.device.resolved,
        "batch_size": config.batch_size,
        "probabilities": config.probabilities,
        "volume": config.volume,
        "overlays": config.overlays,
        "code": code_version().sha256,
    }


def _leaky(found: Sequence[CasePrediction], members: Sequence[TrainedModel]) -> bool:
    """Whether scores are of patients that some members of the ensemble saw, and others did not."""
    known = [one for one in found if one.score is not None and one.role != "unknown"]
    seen = [
        one.name
        for one in known
        if one.score is not None and members_that_saw(patient_of(one.score.patient), members)
    ]
    leaky_split = any(member.split is not None and member.split.leaky for member in members)
    return bool(seen) or (leaky_split and any(one.score is not None for one in found))


def _by_note(found: Sequence[CasePrediction]) -> dict[str, list[str]]:
    """The studies by what is to be said of them."""
    notes: dict[str, list[str]] = {}
    for one in found:
        for note in one.notes:
            notes.setdefault(note, []).append(one.name)
    return notes


def _caption(one: CasePrediction) -> str:
    voxels = sum(one.voxels.values())
    size = f"{voxels:,} voxels" if one.spacing is None else f"{one.millilitres(voxels):.1f} ml"
    return size + (f", Dice {one.score.dice:.3f}" if one.score else "")


def _said(
    found: Sequence[CasePrediction],
    made: int,
    failed: Mapping[str, str],
    metrics: dict[str, float],
    leaky: bool,
    seconds: float,
) -> list[str]:
    """The result in lines for the terminal."""
    lines = []
    for note, names in _by_note(found).items():
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines.append(f"note: {note}: {shown if len(found) > 1 else names[0]}")
    if metrics:
        roles = [one.role for one in found if one.score is not None]
        counts = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))
        title = (
            f"{tables.format_count(len(roles), 'patient')} by their role in training: {counts}"
            + (", leaky=true" if leaky else "")
        )
        lines.append(tables.metrics_table(metrics, title))
    empty = sum(not any(one.voxels.values()) for one in found)
    lines.append(
        f"{made} made, {len(found) - made} done before, {len(failed)} failed; {empty} without tumour; "
        f"{seconds:.1f} s" + (f", {seconds / made:.2f} s each" if made > 1 else "")
    )
    return lines


def check_request(config: PredictConfig) -> None:
    """All that can be refused before a checkpoint or a scan is read. Raises RequestError."""
    choose_device(config.device)
    for name in config.checkpoint:
        check_checkpoint_exists(name)
    check_input(config.input)


def main() -> None:
    """Entry point of `python -m brainseg.predict` and `brainseg predict`."""
    run_command("predict", run, check_request)


if __name__ == "__main__":
    main()
