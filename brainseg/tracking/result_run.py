"""MLflow runs of results that are no training: comparisons, summaries of sweeps, evaluations."""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.tracking.client import artifact_repository
from brainseg.tracking.contents import VALUE_LENGTH
from brainseg.tracking.names import mlflow_keys
from brainseg.tracking.runs import place_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Time limit in seconds for requests to the store, and for the lock.
SECONDS = 30
# Results stand out from the coloured training runs.
COLOUR = "#000000"


@dataclass(frozen=True)
class Result:
    """The contents of the MLflow run of a result. Times are milliseconds since 1970."""

    # `comparison`, `cross_validation`, `sweep_summary` or `evaluation`.
    kind: str
    name: str
    # Equal for results that update the same MLflow run.
    subject: Any
    started: int
    ended: int
    metrics: Mapping[str, float]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def digest_tag(self) -> str:
        """Return the tag by which the run is found again."""
        return "brainseg.evaluation" if self.kind == "evaluation" else "brainseg.comparison"

    @property
    def digest(self) -> str:
        """Return the hash of kind and subject."""
        return hashlib.sha256(json.dumps([self.kind, self.subject]).encode()).hexdigest()


def find_candidates(client: "MlflowClient", experiment: str, result: Result) -> "list[Run]":
    """Return the MLflow runs of this result. Copies of a project may have several."""
    return list(client.search_runs([experiment], f"tags.`{result.digest_tag}` = '{result.digest}'"))


def begin_run(
    client: "MlflowClient", experiment: str, result: Result, existing_run: "Run | None"
) -> "Run":
    """Return the MLflow run of the result, created if there is none."""
    tags = {result.digest_tag: result.digest, "kind": result.kind}
    return existing_run or client.create_run(
        experiment, start_time=result.started, tags=tags, run_name=result.name
    )


def write_run(
    client: "MlflowClient", uri: str, run: "Run", result: Result, folder: Path, description: str
) -> None:
    """Send metrics, tags, description and the files of `folder`, and finish the run."""
    from mlflow.entities import Metric, RunTag

    tags = {result.digest_tag: result.digest, "kind": result.kind} | place_tags(folder)
    tags |= result.tags | {
        "mlflow.note.content": description[:VALUE_LENGTH],
        "mlflow.runColor": COLOUR,
        "mlflow.source.name": f"brainseg.{Path(sys.argv[0]).stem}",
        "mlflow.source.type": "LOCAL",
    }
    keys = mlflow_keys(result.metrics)
    client.log_batch(
        run.info.run_id,
        metrics=[
            Metric(keys[name], value, result.ended, 0) for name, value in result.metrics.items()
        ],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    artifact_repository(run.info.artifact_uri, uri).log_artifacts(str(folder))
    client.set_terminated(run.info.run_id, "FINISHED", end_time=result.ended)


def typed_command() -> str:
    """Return the command of this process as it was typed."""
    return f"python -m brainseg.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}".rstrip()


def picture_link(run: "Run", path: str) -> str:
    """Return Markdown that shows a picture among the artifacts of a run.

    The address is relative to MLflow's page, so that it holds wherever the server is.
    """
    return f"![{Path(path).stem}](get-artifact?path={path}&run_uuid={run.info.run_id})"
