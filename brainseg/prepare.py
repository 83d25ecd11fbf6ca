r"""Verify a folder of slices and convert it to one HDF5 file.

    python -m brainseg.prepare source=kaggle_3m output=lgg.h5
    python -m brainseg.prepare source=Task01_BrainTumour output=msd.h5 size=240
    python -m brainseg.prepare source=scans output=own.h5 \
        sequences.FLAIR='*_flair.nii.gz' mask='*_seg.nii.gz'
    python -m brainseg.prepare source=slices output=own.h5 \
        images='img/{patient}_{slice}.png' mask='seg/{patient}_{slice}.png'
    python -m brainseg.prepare source=scans output=own.h5 reader=mine

The second command reads nnU-Net folders, BIDS and BraTS, too. The last one uses a reader of your
own, as docs/extending.md describes.
Without `reader=` the layout is recognised. Nothing is written unless every patient is sound.
"""

import os
import shlex
import sys
import time
from dataclasses import fields
from pathlib import Path

from brainseg.cli.main import run_command
from brainseg.config import PrepareConfig
from brainseg.core.errors import DataError, check
from brainseg.core.files import resolve_link
from brainseg.core.signals import Interrupted
from brainseg.data.conversion import ConversionSummary, convert
from brainseg.data.fault_report import enumerate_names, summarise_faults
from brainseg.data.readers.base import Reading
from brainseg.data.readers.registry import choose_scanner
from brainseg.data.store import FOREIGN, OPEN, is_open_elsewhere, is_store

# Number of ignored files that are listed by name.
LISTED_NAMES = 20


def check_request(config: PrepareConfig) -> None:
    """Raise RequestError if source or reader do not exist, or the output cannot be written.

    This check reads no data.
    """
    source, output = Path(config.source), Path(config.output)
    rule = "is a file" if source.is_file() else "no such folder"
    remedy = "name the folder that contains the patients' folders"
    check(source.is_dir(), "source", source, rule, remedy)
    choose_scanner(source, reading_of(config))
    check(not output.is_dir(), "output", output, "is a folder", "name a file, such as lgg.h5")
    if output.is_file():
        check(
            not is_open_elsewhere(output),
            "output",
            output,
            OPEN,
            "close that program, or remove the file",
        )
    # Only files of this command may be overwritten.
    is_replaceable = not output.exists() or is_store(output)
    rule = f"already exists and is {FOREIGN}"
    check(is_replaceable, "output", output, rule, "name another file, or remove this file")
    folder = next(folder for folder in resolve_link(output).absolute().parents if folder.exists())
    check(
        folder.is_dir() and os.access(folder, os.W_OK),
        "output",
        output,
        f"{folder} cannot be written to",
        "choose another folder",
    )


def run(config: PrepareConfig) -> int:
    """Prepare the file, print its content and return the exit code.

    If the data are faulty, the exit code is 1, and the complete report goes to stderr.
    """
    start = time.perf_counter()
    try:
        summary = convert(
            config.source,
            config.output,
            config.on_fault,
            config.workers,
            progress=True,
            on_duplicate=config.on_duplicate,
            reading=reading_of(config),
        )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"{stop}; nothing was written", file=sys.stderr)
        return stop.exit_code
    for line in describe_summary(summary, Path(config.output)):
        print(line)
    command = f"python -m brainseg.train data.path={shlex.quote(config.output)}"
    print(f"took {time.perf_counter() - start:.1f} s; next: {command}")
    return 0


def reading_of(config: PrepareConfig) -> Reading:
    """Return the settings of the reader."""
    return Reading(**{field.name: getattr(config, field.name) for field in fields(Reading)})


def describe_summary(summary: ConversionSummary, output: Path) -> list[str]:
    """Return the summary as lines for the terminal."""
    volumes = summary.volumes
    slices = sum(volume.shape[0] for volume in volumes)
    with_tumour = sum(int((volume.tumour_pixels > 0).sum()) for volume in volumes)
    _, _, height, width = volumes[0].shape
    size = output.stat().st_size
    lines = [
        f"reader: {summary.reader}; channels: {', '.join(summary.channels)}; "
        f"classes: {', '.join(summary.classes)}"
    ]
    lines += [f"fault: {fault}" for fault in summarise_faults(summary.faults)]
    left_out = len(summary.left_out)
    lines += (
        [f"left out {left_out} patient{'s' * (left_out > 1)}: {', '.join(summary.left_out)}"]
        if left_out
        else []
    )
    lines += [f"warning: {warning}" for warning in summarise_faults(summary.warnings)]
    lines += [f"ignored: {name}" for name in summary.ignored[:LISTED_NAMES]]
    lines += (
        [f"ignored: {len(summary.ignored) - LISTED_NAMES} more"]
        if len(summary.ignored) > LISTED_NAMES
        else []
    )
    for index, channel in enumerate(summary.channels):
        for label, names in {
            f"no {channel} (FLAIR stands in for it)": [
                volume.name for volume in volumes if volume.copies[index]
            ],
            f"constant {channel} (gives zeros)": [
                volume.name for volume in volumes if volume.constant[index]
            ],
        }.items():
            lines += (
                [f"{label} in {len(names)} of {len(volumes)} volumes: {enumerate_names(names)}"]
                if names
                else []
            )
    for index, name in enumerate(summary.classes) if len(summary.classes) > 2 else ():
        pixels = [int(volume.class_pixels[index]) for volume in volumes]
        line = (
            f"class {index}, {name}: in {sum(map(bool, pixels))} of {len(volumes)} volumes, "
            f"{sum(pixels):,} pixels"
        )
        absence = (
            ""
            if any(pixels)
            else "; every mean Dice would contain a Dice of 1 for it, so leave the class out"
        )
        lines += [f"{'warning: ' if absence else ''}{line}{absence}"] if index else []
    lines += [
        f"{len({volume.patient for volume in volumes})} patients, {len(volumes)} volumes, "
        f"{slices} slices of {height}x{width} pixels, "
        f"{with_tumour} with {' or '.join(summary.classes[1:])}",
        f"{output}: {'written' if summary.written else 'unchanged, nothing to do'}, "
        f"{size / 1e6:.1f} MB, {size / slices / 1e6:.3f} MB per slice, "
        f"fingerprint {summary.fingerprint}",
    ]
    return lines


def main() -> None:
    """Run `python -m brainseg.prepare` or `brainseg prepare`."""
    run_command("prepare", run, check_request)


if __name__ == "__main__":
    main()
