"""The benchmark report as Markdown and JSON, with a description of the machine."""

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.measure import Section, Table
from brainseg import __version__
from brainseg.core.files import write_json, write_text

# The instructions that affect the speed of a training step.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, str]:
    """Return a description of the machine and its software."""
    # This file exists only on Linux. Elsewhere, the instructions are unknown.
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = set(fields.get("flags", "").split())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "of its instructions": ", ".join(flag for flag in FLAGS if flag in flags) or "unknown",
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "software": (
            f"brainseg {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
        ),
    }


def markdown(sections: Mapping[str, Section], command: str) -> str:
    """Return the page as Markdown, with the promised figures first."""
    origin = (
        f"Written by `{command}` on {time.strftime('%Y-%m-%d')}. `benchmark.json` in the same "
        "folder contains the same figures."
    )
    method = (
        "For a ratio, the contestants took turns, so that it is valid on a machine with other "
        "load, too. Each figure is a median, with the smallest and the largest value in brackets."
    )
    lines = ["# Benchmark", "", origin, method, "", "| machine | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine().items()]
    lines += ["", "## Bars", "", "| | bar | measured | met |", "|---|---|---|---|"]
    answers = {True: "yes", False: "**no**", None: "not measured here"}
    lines += [
        f"| {bar.what} | {bar.rule} | {bar.measured} | {answers[bar.met]} |"
        for section in sections.values()
        for bar in section.bars
    ]
    for section in sections.values():
        for table in section.tables:
            lines += ["", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = [
        f"## {table.title}",
        "",
        "| " + " | ".join(table.columns) + " |",
        "|---" * len(table.columns) + "|",
    ]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table.rows]
    return [*lines, *(["", table.note] if table.note else [])]


def write(folder: Path, sections: Mapping[str, Section], command: str) -> str:
    """Write benchmark.md and benchmark.json to the folder, and return the page."""
    page = markdown(sections, command)
    write_text(folder / "benchmark.md", page)
    plain = {name: section.plain() for name, section in sections.items()}
    write_json(folder / "benchmark.json", {"machine": machine(), "command": command, **plain})
    return page
