"""Segment scans: TIFF slices or stacks, NIfTI, DICOM.

    python -m brainseg.predict input=scan.nii.gz          by the trained network of the package, lgg
    python -m brainseg.predict checkpoint=runs/NAME input=kaggle_3m        every patient of a folder
    python -m brainseg.predict checkpoint=runs/NAME input=[pre.nii.gz,flair.nii.gz,post.nii.gz]
    python -m brainseg.predict checkpoint=[runs/a,runs/b] input=dicom sequences.FLAIR=flair

A repeated command skips the completed cases. Cases with masks are scored by the code of
evaluate.
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
from brainseg.data.cases.input_case import InputCase
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
    leaking_members,
    load_members,
    patient_role,
    short_name,
)
from brainseg.reports import predictions, tables
from brainseg.reports.overlays import Case
from brainseg.runs.code_version import code_version
from brainseg.weights import model_card

log = logging.getLogger("brainseg")


def run(config: PredictConfig) -> int:
    """Segment every case that is not complete, write the results and print a summary.

    Returns 1 if a case could not be read, else 0.
    """
    start, output = time.perf_counter(), Path(config.output)
    # Compiling the network takes longer than segmenting a case.
    device = choose_device(dataclasses.replace(config.device, compile=False))
    members = load_members(config.checkpoint, config.data_config, config.model)
    segmenter = Segmenter(
        members, inference_of(members, config.inference), device, config.batch_size
    )
    cases = find_cases(
        config.input, config.sequences, segmenter.channels, config.volume, segmenter.classes
    )
    output_folder.check_output(output, [Path(path) for path in config.paths])
    settings = _settings(config, segmenter)
    output_folder.check_not_overwriting(output, cases, settings)
    facts = {
        "checkpoint": config.checkpoint,
        "uid": [member.stored.get("uid") for member in members],
        "device": device.description,
        "inference": settings["inference"],
        "input": config.input,
        "trained_on": _training_data(members),
        "about": [dict(member.about) for member in members],
        "sequences": {case.name: dict(case.assignment) for case in cases},
    }
    output_folder.mark_as_output(output, facts)
    print(output_folder.NOTICE)
    for line in [
        *_network_lines(members),
        *_training_data(members),
        *_sequence_sources(cases, segmenter.channels),
    ]:
        print(line)

    results, failed, new_count = _segment_cases(cases, segmenter, config, settings)
    leaky = _is_leaky(results, members)
    facts |= {
        "cases": len(cases),
        "made": new_count,
        "failed": failed,
        "leaky": leaky,
        "notes": _by_note(results),
    }
    metrics = output_folder.write_results(output, results, facts)
    if results:
        _write_pages(config, cases, results, segmenter)
    seconds = time.perf_counter() - start
    lines = _summary_lines(results, new_count, failed, metrics, leaky, seconds)
    lines += _output_lines(config, cases, results, has_scores=bool(metrics))
    print("\n".join(lines))
    for name, reason in failed.items():
        log.error("error: %s: %s", name, reason)
    return int(bool(failed))


def _segment_cases(
    cases: Sequence[InputCase],
    segmenter: Segmenter,
    config: PredictConfig,
    settings: dict[str, Any],
) -> tuple[list[CasePrediction], dict[str, str], int]:
    """Segment the cases that are not complete.

    Returns the results of all cases, the reasons of those that failed by name, and the number of
    new results.
    """
    results: list[CasePrediction] = []
    failed: dict[str, str] = {}
    new_count = 0
    # With disable=None, the progress bar appears in a terminal only and not in a log file.
    for case in tqdm(cases, "predict", unit="case", leave=False, disable=None):
        try:
            digest = output_folder.digest_of(settings, case)
            result = output_folder.read_complete(Path(config.output) / case.name, digest)
            if result is None:
                result = _segment_case(case, segmenter, config, digest)
                new_count += 1
            results.append(result)
        except (DataError, RequestError, FloatingPointError) as error:
            # The error concerns a single case, so that the other cases are still segmented.
            failed[case.name] = str(error)
    return results, failed, new_count


def _write_pages(
    config: PredictConfig,
    cases: Sequence[InputCase],
    results: Sequence[CasePrediction],
    segmenter: Segmenter,
) -> None:
    """Write the contact sheet and the viewer, as far as they are requested."""
    output = Path(config.output)
    if config.overlays:
        scored = any(result.score is not None for result in results)
        thumbnails = [output / result.name / "thumbnail.png" for result in results]
        prediction_report.write_contact_sheet(
            thumbnails, segmenter.classes, scored, output / "contact_sheet.png"
        )
    if config.viewer:
        network = " + ".join(map(short_name, config.checkpoint))
        by_name = {case.name: case for case in cases}
        viewer.write_viewer(output, by_name, results, segmenter.classes, config.viewer, network)


def _output_lines(
    config: PredictConfig,
    cases: Sequence[InputCase],
    results: Sequence[CasePrediction],
    has_scores: bool,
) -> list[str]:
    """Return the lines on the files that were written, and on those of earlier requests."""
    output, lines = Path(config.output), []
    if results:
        more = f", and {len(results) - 1} more folders" if len(results) > 1 else ""
        lines.append(f"masks:         {output / results[0].name}/*_mask.*{more}")
    files = ["volumes.csv", "summary.json"]
    if has_scores:
        files.append("patients.csv")
    if config.overlays and results:
        files.append("contact_sheet.png")
    if config.viewer and results:
        files.append("viewer.html (opens offline)")
    lines.append(f"written to {output}: a folder per case, {', '.join(files)}")
    if earlier := output_folder.other_cases_in(output, cases):
        count = tables.format_count(len(earlier), "folder")
        lines.append(
            f"note: {output} contains {count} of earlier requests, such as {earlier[0]}, "
            "that the tables and pages leave out"
        )
    return lines


def _segment_case(
    case: InputCase, segmenter: Segmenter, config: PredictConfig, digest: str
) -> CasePrediction:
    """Read, segment and score one case, and write its folder."""
    scan = case.read()
    store = MemoryStore(case.name, scan, case.channels, segmenter.classes)
    scored = scan.masks is not None
    result = segmenter(store, scored)
    folder = Path(config.output) / case.name
    probability = result.probability if config.probabilities else None
    files = case.write(folder, result.prediction, probability, len(store.classes) > 2)
    spacing = [float(side) for side in scan.spacing] if scan.spacing is not None else None
    voxels = output_folder.voxels_of(result.prediction, store.classes)
    role = patient_role(store.patients[0], segmenter.members, store, scored)
    notes = [*case.notes, *_notes(store, segmenter)]
    predictions.write_predictions(
        folder / output_folder.MASKS,
        [predictions.Prediction.of(case.name, role, result.prediction, None)],
    )
    files.append(folder / output_folder.MASKS)
    shape, score = list(result.prediction.shape), result.score if scored else None
    source = output_folder.source_files(case)
    prediction = CasePrediction(
        case.name,
        digest,
        {},
        shape,
        spacing,
        voxels,
        role,
        notes,
        score,
        source,
        case.voxel_millilitres,
    )
    if config.overlays:
        channel = main_channel(store.channels)
        truth = result.truth if scored else result.prediction
        pictured = Case(
            case.name,
            result.score.dice,
            scan.images,
            truth,
            result.prediction,
            channel,
            classes=store.classes,
        )
        files += prediction_report.write_pictures(pictured, scored, _caption(prediction), folder)
    prediction = dataclasses.replace(
        prediction, files={path.name: output_folder.sha256(path) for path in files}
    )
    # This file is written last, because it states that all others are complete.
    prediction.write(folder)
    return prediction


def _notes(store: MemoryStore, segmenter: Segmenter) -> list[str]:
    """Return a line for each unusual property of a volume."""
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
            "a single slice: intensities are scaled by the whole volume, "
            "so that a single slice has other intensities than in its volume"
        )
    # Nothing is resampled. An image of a very different size therefore shows heads of another size
    # than those that the network has learned.
    size = segmenter.members[0].image_size
    if size and not all(
        2 / 3 < side / trained < 1.5 for side, trained in zip((height, width), size, strict=True)
    ):
        notes.append(
            f"{height}x{width} pixels, trained on {size[0]}x{size[1]}: "
            "nothing is resampled, so heads differ in size"
        )
    return notes


def _network_lines(members: Sequence[TrainedModel]) -> list[str]:
    """Return lines with name, licence and expected score of each network of the package."""
    lines = []
    for member in members:
        if about := member.about:
            lines += [
                f"network:       {about['name']} {about['version']}, {about['licence']}; its model "
                f"card is {model_card(member.path)}",
                f"expected Dice: {about['expected_dice']}",
            ]
    return lines


def _training_data(members: Sequence[TrainedModel]) -> list[str]:
    """Return a line for each data file that the members were trained on."""
    lines = []
    for member in members:
        path = member.config.data.path if member.config else None
        fingerprint = str(member.stored.get("fingerprint", ""))
        if path or fingerprint:
            details = f" (fingerprint {fingerprint[:12]})" if fingerprint else ""
            lines.append(f"trained on:    {Path(path).name if path else 'a phantom'}{details}")
    return list(dict.fromkeys(lines))


def _sequence_sources(cases: Sequence[InputCase], channels: Sequence[str]) -> list[str]:
    """Return a line with the source of each sequence, for each distinct assignment of the cases.

    At most ten assignments are listed. summary.json contains all of them.
    """
    lines = []
    for case in cases:
        if set(channels).isdisjoint(case.assignment):
            # A case that cannot be read has no assignment. Its error is reported instead.
            continue
        places = {channel: case.assignment.get(channel, "missing") for channel in channels}
        if "mask" in case.assignment:
            places["mask to score by"] = case.assignment["mask"]
        lines.append(
            "sequences:     "
            + ", ".join(f"{channel}: {place}" for channel, place in places.items())
        )
    lines = list(dict.fromkeys(lines))
    more = [f"sequences:     {len(lines) - 10} more, in summary.json"] if len(lines) > 10 else []
    return [*lines[:10], *more]


def _settings(config: PredictConfig, segmenter: Segmenter) -> dict[str, Any]:
    """Return everything that the output files depend on, except the case itself."""
    return {
        "checkpoint": [member.sha256 for member in segmenter.members],
        "model": [
            dataclasses.asdict(member.config or config)["model"] for member in segmenter.members
        ],
        "data": [
            [member.channels, member.data.context, member.data.context_step, member.data.intensity]
            for member in segmenter.members
        ],
        "inference": dataclasses.asdict(segmenter.inference),
        "device": segmenter.device.description,
        "batch_size": config.batch_size,
        "probabilities": config.probabilities,
        "volume": config.volume,
        "overlays": config.overlays,
        "code": code_version().sha256,
    }


def _is_leaky(results: Sequence[CasePrediction], members: Sequence[TrainedModel]) -> bool:
    """Return True if some members of the ensemble saw a scored patient, and others did not.

    Every score is leaky if a member's split is leaky.
    """
    seen_names = [
        result.name
        for result in results
        if result.score is not None
        and result.role != "unknown"
        and leaking_members(patient_of(result.score.patient), members)
    ]
    leaky_split = any(member.is_leaky for member in members)
    has_scores = any(result.score is not None for result in results)
    return bool(seen_names) or (leaky_split and has_scores)


def _by_note(results: Sequence[CasePrediction]) -> dict[str, list[str]]:
    """Return the names of the cases that each note applies to."""
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.name)
    return notes


def _caption(result: CasePrediction) -> str:
    voxels = sum(result.voxels.values())
    size = (
        f"{voxels:,} voxels" if result.spacing is None else f"{result.millilitres(voxels):.1f} ml"
    )
    return size + (f", Dice {result.score.dice:.3f}" if result.score else "")


def _summary_lines(
    results: Sequence[CasePrediction],
    new_count: int,
    failed: Mapping[str, str],
    metrics: dict[str, float],
    leaky: bool,
    seconds: float,
) -> list[str]:
    """Return the summary of the results in lines for the terminal."""
    lines = []
    for note, names in _by_note(results).items():
        first_names = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines.append(f"note: {note}: {first_names if len(results) > 1 else names[0]}")
    if metrics:
        roles = [result.role for result in results if result.score is not None]
        counts = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))
        title = (
            f"{tables.format_count(len(roles), 'patient')} by their role in training: {counts}"
            + (", leaky=true" if leaky else "")
        )
        lines.append(tables.metrics_table(metrics, title))
    empty = sum(not any(result.voxels.values()) for result in results)
    lines.append(
        f"{new_count} made, {len(results) - new_count} done before, {len(failed)} failed; "
        f"{empty} without tumour; "
        f"{seconds:.1f} s" + (f", {seconds / new_count:.2f} s each" if new_count > 1 else "")
    )
    return lines


def check_request(config: PredictConfig) -> None:
    """Check the request before a checkpoint or a scan is read. Raises RequestError."""
    choose_device(config.device)
    for name in config.checkpoint:
        check_checkpoint_exists(name)
    check_input(config.input)


def main() -> None:
    """Run the command `python -m brainseg.predict`, also called `brainseg predict`."""
    run_command("predict", run, check_request)


if __name__ == "__main__":
    main()
