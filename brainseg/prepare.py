"""From a folder of slices to one HDF5 file, verified first.

    python -m brainseg.prepare source=kaggle_3m output=lgg.h5
    python -m brainseg.prepare source=Task01_BrainTumour output=msd.h5 size=240        also nnU-Net, BIDS, BraTS
    python -m brainseg.prepare source=scans output=own.h5 sequences.FLAIR='*_flair.nii.gz' mask='*_seg.nii.gz'
    python -m brainseg.prepare source=slices output=own.h5 images='img/{patient}_{slice}.png' mask='seg/{patient}_{slice}.png'
    python -m brainseg.prepare source=scans output=own.h5 reader=mine       a layout of your own: docs/extending.md

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
from brainseg.core.files import target
from brainseg.core.signals import Interrupted
from brainseg.data.conversion import Summary, convert
from brainseg.data.fault_report import enumerate_names, summarise
from brainseg.data.readers.base import Reading
from brainseg.data.readers.registry import scanner
from brainseg.data.store import FOREIGN, OPEN, is_open_elsewhere, is_store

SHOWN = 20  # names of ignored files


def check_request(config: PrepareConfig) -> None:
    """Raise RequestError, before anything is read, if there is no such source or reader or the output cannot be written."""
    source, output = Path(config.source), Path(config.output)
    rule = "is a file" if source.is_file() else "no such folder"
    check(
        source.is_dir(), "source", source, rule, "name the folder that holds the patients' folders"
    )
    scanner(source, reading_of(config))
    check(not output.is_dir(), "output", output, "is a folder", "name a file, as lgg.h5")
    if output.is_file():
        check(
            not is_open_elsewhere(output),
            "output",
            output,
            OPEN,
            "close that program, or remove the file",
        )
    ours = not output.exists() or is_store(output)
    check(ours, "output", output, f"is there already and {FOREIGN}", "name another, or remove it")
    folder = next(folder for folder in target(output).absolute().parents if folder.exists())
    check(
        folder.is_dir() and os.access(folder, os.W_OK),
        "output",
        output,
        f"{folder} cannot be written to",
        "choose another folder",
    )


def run(config: PrepareConfig) -> int:
    """Prepare the file and print what is in it; 1, with the whole report on stderr, if the data are faulty."""
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
    for line in describe(summary, Path(config.output)):
        print(line)
    print(
        f"took {time.perf_counter() - start:.1f} s; next: python -m brainseg.train data.path={shlex.quote(config.output)}"
    )
    return 0


def reading_of(config: PrepareConfig) -> Reading:
    """Return the settings that say how the source is read."""
    return Reading(**{field.name: getattr(config, field.name) for field in fields(Reading)})


def describe(summary: Summary, output: Path) -> list[str]:
    """The summary in lines for the terminal."""
    volumes = summary.volumes
    slices = sum(volume.shape[0] for volume in volumes)
    with_tumour = sum(int((volume.tumour_pixels > 0).sum()) for volume in volumes)
    _, _, height, width = volumes[0].shape
    size = output.stat().st_size
    lines = [
        f"reader: {summary.reader}; channels: {', '.join(summary.channels)}; classes: {', '.join(summary.classes)}"
    ]
    lines += [f"fault: {fault}" for fault in summarise(summary.faults)]
    left_out = len(summary.left_out)
    lines += (
        [f"left out {left_out} patient{'s' * (left_out > 1)}: {', '.join(summary.left_out)}"]
        if left_out
        else []
    )
    lines += [f"warning: {warning}" for warning in summarise(summary.warnings)]
    lines += [f"ignored: {name}" for name in summary.ignored[:SHOWN]]
    lines += (
        [f"ignored: {len(summary.ignored) - SHOWN} more"] if len(summary.ignored) > SHOWN else []
    )
    for index, channel in enumerate(summary.channels):
        for what, found in {
            f"no {channel} (FLAIR stands in for it)": [
                volume.name for volume in volumes if volume.copies[index]
            ],
            f"constant {channel} (gives zeros)": [
                volume.name for volume in volumes if volume.constant[index]
            ],
        }.items():
            lines += (
                [f"{what} in {len(found)} of {len(volumes)} volumes: {enumerate_names(found)}"]
                if found
                else []
            )
    for index, name in enumerate(summary.classes) if len(summary.classes) > 2 else ():
        pixels = [int(volume.class_pixels[index]) for volume in volumes]
        line = f"class {index}, {name}: in {sum(map(bool, pixels))} of {len(volumes)} volumes, {sum(pixels):,} pixels"
        absent = (
            ""
            if any(pixels)
            else "; every mean Dice would contain a Dice of 1 for it, so leave the class out"
        )
        lines += [f"{'warning: ' if absent else ''}{line}{absent}"] if index else []
    lines += [
        f"{len({volume.patient for volume in volumes})} patients, {len(volumes)} volumes, "
        f"{slices} slices of {height}x{width} pixels, {with_tumour} with {' or '.join(summary.classes[1:])}",
        f"{output}: {'written' if summary.written else 'unchanged, nothing to do'}, "
        f"{size / 1e6:.1f} MB, {size / slices / 1e6:.3f} MB a slice, fingerprint {summary.fingerprint}",
    ]
    return lines


def main() -> None:
    """Entry point of `python -m brainseg.prepare` and `brainseg prepare`."""
    run_command("prepare", run, check_request)


if __name__ == "__main__":
    main()
