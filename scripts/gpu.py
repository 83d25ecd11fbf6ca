"""Try everything that depends on a GPU, on a machine that has one, in some minutes.

    python scripts/gpu.py data=lgg.h5                   all parts
    python scripts/gpu.py data=lgg.h5 only=tests,steps
    python scripts/gpu.py device=cpu                    its own trial without a GPU, on the phantom

    data        a file that brainseg.prepare made; without it the phantom
    only        a list of tests, steps, reference, folds (default: all)
    device      cuda, or cpu for a short trial of this script
    recipe      settings of the five folds (experiment=fast max_minutes=1)
    reference   settings of the reference recipe (experiment=reference)
    output      the folder of gpu.md, gpu.json and the runs (gpu)

    tests       tests/training/test_cuda.py: precisions, CUDA graphs, resuming, agreement with a CPU
    steps       images per second by precision, memory format, graphs and batch
    reference   the reference recipe on fold 1 of five
    folds       the recipe on five folds at the same time, pooled over all patients

The first two parts run alone, since others would disturb the timings. `reference` and `folds` then
run at the same time. Predictions that were made before the first run stand beside the figures.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import gpu_steps
from brainseg.config.overrides import values_by_setting
from brainseg.core.files import write_json, write_text
from brainseg.evaluation.statistics import bootstrap
from brainseg.reports.tables import read_scores, subjects_of

DEFAULTS = {
    "data": "",
    "only": "tests,steps,reference,folds",
    "device": "cuda",
    "recipe": "experiment=fast max_minutes=1",
    "reference": "experiment=reference",
    "output": "gpu",
}
FOLDS = 5
# Settings that keep the trial on a CPU short.
TRIAL = [
    *("data.phantom.patients=10", "data.phantom.slices=6", "data.phantom.size=32"),
    *("model.depth=2", "model.width=4", "epochs=1"),
]
# Minutes that were predicted for an H100, with graphs.
PREDICTED_REFERENCE = "about 2"


def main(arguments: list[str]) -> int:
    """Run the parts, print and write their figures, and return 1 if a test or a run failed."""
    overrides = values_by_setting(arguments)
    if unknown := overrides.keys() - DEFAULTS.keys():
        print(__doc__ if unknown & {"-h", "--help"} else f"error: {min(unknown)}: no such setting")
        return 0 if unknown & {"-h", "--help"} else 2
    settings = DEFAULTS | overrides
    device, output = settings["device"], Path(settings["output"])
    if device == "cuda" and not torch.cuda.is_available():
        print("error: device=cuda: no GPU is visible to torch; device=cpu tries this script")
        return 2
    parts = settings["only"].split(",")
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU, a trial of this script"
    facts: dict[str, Any] = {"card": card, "torch": str(torch.__version__), "parts": {}}
    text = [f"# {card}, torch {torch.__version__}"]
    if "tests" in parts:
        facts["parts"]["tests"] = run_tests()
        text += ["", f"tests: {facts['parts']['tests']}"]
    if "steps" in parts:
        rows = gpu_steps.measure(device, gpu_steps.BATCHES if device == "cuda" else (2,))
        facts["parts"]["steps"] = rows
        text += ["", *format_steps(rows)]
    runs = start_runs(settings, [part for part in ("reference", "folds") if part in parts], output)
    for part, processes in runs.items():
        facts["parts"][part] = finish_runs(processes)
        text += ["", *format_runs(part, facts["parts"][part])]
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "gpu.json", facts)
    write_text(output / "gpu.md", "\n".join([*text, ""]))
    print("\n".join(text))
    has_failed = "failed" in facts["parts"].get("tests", "") or any(
        run["code"] for part in runs for run in facts["parts"][part]["runs"]
    )
    return int(has_failed)


def run_tests() -> str:
    """Run the tests of the GPU and return the last line of pytest, after "failed" if one failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["tests/training/test_cuda.py"]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    print(result.stdout[-6000:], flush=True)
    last_line = (result.stdout.strip().splitlines() or ["no output"])[-1]
    return f"failed: {last_line}" if result.returncode else last_line


def format_steps(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of the step benchmark, with the predictions."""
    lines = ["| batch | setting | images/s | predicted |", "|---|---|---|---|"]
    for row in rows:
        predicted = gpu_steps.PREDICTED.get(row["setting"], "") if row["batch"] == 8 else ""
        lines.append(f"| {row['batch']} | {row['setting']} | {row['rate']:,.0f} | {predicted} |")
    return lines


def start_runs(
    settings: dict[str, str], parts: list[str], output: Path
) -> dict[str, list[dict[str, Any]]]:
    """Start the runs of each part at the same time, each in a process of its own."""
    is_trial = settings["device"] == "cpu"
    data = [f"data.path={settings['data']}"] if settings["data"] else []
    device = ["device=cpu"] if is_trial else ["device=cuda", "device.precision=auto"]
    started: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        recipe = settings["recipe" if part == "folds" else "reference"].split()
        recipe = [word for word in recipe if not (is_trial and word.startswith("max_minutes"))]
        for fold in range(FOLDS) if part == "folds" else (1,):
            folder = output / f"{part}-{fold}"
            words = [*recipe, "split=kfold", f"split.folds={FOLDS}", f"split.fold={fold}"]
            words += [*data, *device, *(TRIAL if is_trial else []), f"output={folder}"]
            words += ["tracking=none", "device.threads=1", "test=yes", "resume=auto"]
            if is_trial and part == "folds":
                words += ["max_minutes=null"]
            command = [sys.executable, "-m", "brainseg.train", *words]
            output.mkdir(parents=True, exist_ok=True)
            with Path(f"{folder}.log").open("w") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            run = {"folder": folder, "process": process, "command": " ".join(command[1:])}
            started.setdefault(part, []).append(run)
    return started


def finish_runs(processes: list[dict[str, Any]]) -> dict[str, Any]:
    """Wait for the runs of a part, and return their figures and their pooled test scores."""
    runs, tables = [], []
    for run in processes:
        code = run["process"].wait()
        folder: Path = run["folder"]
        facts = {"command": run["command"], "code": code}
        if code == 0:
            rows = [
                json.loads(line)
                for line in (folder / "metrics.jsonl").read_text().split("\n")
                if line
            ]
            facts |= {
                "steps": rows[-1]["step"],
                "minutes": sum(row["metrics"]["speed/epoch_seconds"] for row in rows) / 60,
                "images_per_second": rows[-1]["metrics"]["speed/images_per_second"],
            }
            patients = read_scores(folder / "patients.csv")
            tables.append(patients[patients.role == "test"])
        else:
            facts["log"] = Path(f"{folder}.log").read_text()[-2000:]
        runs.append(facts)
    scored = pd.concat(tables) if tables else pd.DataFrame({"patient": [], "dice": []})
    dice = scored.dice.to_numpy()
    pooled = {}
    if len(dice) > 1:
        low, high = bootstrap(dice, subjects_of(scored).to_numpy(str))
        pooled = {
            "patients": len(dice),
            "mean": float(dice.mean()),
            "low": low,
            "high": high,
            "median": float(pd.Series(dice).median()),
            "missed": int((dice < 0.05).sum()),
        }
    return {"runs": runs, "pooled": pooled}


def format_runs(part: str, facts: dict[str, Any]) -> list[str]:
    """Return the lines on a part's runs, with the prediction for the reference recipe."""
    lines = []
    for run in facts["runs"]:
        if run["code"]:
            lines.append(f"{part}: FAILED: {run['command']}\n{run['log']}")
            continue
        predicted = f", predicted {PREDICTED_REFERENCE}" if part == "reference" else ""
        lines.append(
            f"{part}: {run['steps']} steps in {run['minutes']:.2f} minutes{predicted}; "
            f"{run['images_per_second']:,.0f} images/s in the last epoch"
        )
    if pooled := facts["pooled"]:
        lines.append(
            f"{part}: test Dice of {pooled['patients']} patients: mean {pooled['mean']:.3f} "
            f"({pooled['low']:.3f} to {pooled['high']:.3f}), median {pooled['median']:.3f}, "
            f"{pooled['missed']} missed"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
