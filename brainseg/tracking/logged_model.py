"""MLflow entities of a run: its dataset as an input, its best checkpoint as a LoggedModel."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainseg.tracking.client import artifact_repository

# MLflow's own digests have 8 characters, and its pages print digests in full.
DIGEST_LENGTH = 12

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run


def log_dataset(client: "MlflowClient", run: "Run", data: dict[str, Any]) -> None:
    """Log the HDF5 file as an input of the run, unless it already is.

    MLflow shares the entry between all runs with the same name and digest.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    digest = data["fingerprint"][:DIGEST_LENGTH]
    if run.inputs and any(entry.dataset.digest == digest for entry in run.inputs.dataset_inputs):
        return
    source = json.dumps({"uri": data["path"]})
    profile = json.dumps({key: data[key] for key in ("patients", "slices")})
    dataset = Dataset(data["name"], digest, source_type="local", source=source, profile=profile)
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    try:
        client.log_inputs(run.info.run_id, inputs)
    except MlflowException:
        # Another run stored the entry in the same instant (4 of 80 starts, eight at a time). The
        # second attempt finds that entry.
        client.log_inputs(run.info.run_id, inputs)


def log_model(
    client: "MlflowClient",
    uri: str,
    run_id: str,
    checkpoint: Path,
    record: dict[str, Any],
    metrics: list["Metric"],
    epoch: int,
) -> None:
    """Log the best checkpoint as the run's LoggedModel, once for each content of the file.

    The model has the name of the run, and `epoch` is that of the checkpoint. An interrupted upload
    is repeated. `mlflow.pytorch.log_model` is not used, because it exports a trace with frozen
    height and width, or pickles the model.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    run = client.get_run(run_id)
    model = _find(client, run, record["uid"], digest) or _create(client, run, record["uid"], digest)
    if model.status != LoggedModelStatus.READY:
        files = artifact_repository(model.artifact_location, uri)
        files.log_artifact(str(checkpoint))
        files.log_artifact(str(checkpoint.parent.parent / "config.yaml"))
        client.log_batch(
            run_id, metrics=[_of_model(metric, model, record["data"]) for metric in metrics]
        )
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, epoch)])


def _find(client: "MlflowClient", run: "Run", uid: str, digest: str) -> "LoggedModel | None":
    query = (
        f"tags.`brainseg.uid` = '{uid}' AND tags.`checkpoint.sha256` = '{digest}'"
        f" AND source_run_id = '{run.info.run_id}'"
    )
    models = client.search_logged_models([run.info.experiment_id], query, max_results=1)
    return models[0] if models else None


def _create(client: "MlflowClient", run: "Run", uid: str, digest: str) -> "LoggedModel":
    prefixes = ("model.", "inference.", "data.channel", "data.context", "data.intensity")
    params = {key: value for key, value in run.data.params.items() if key.startswith(prefixes)}
    # MLflow refuses these characters in the name of a model.
    name = run.info.run_name.translate(str.maketrans("/:.%\"'", "______"))
    tags = {"brainseg.uid": uid, "checkpoint.sha256": digest}
    return client.create_logged_model(
        run.info.experiment_id, name, run.info.run_id, tags, params, model_type="segmentation"
    )


def _of_model(metric: "Metric", model: "LoggedModel", data: dict[str, Any]) -> "Metric":
    """Return the metric with the model's id.

    MLflow then shows the metric on the model's page, and it remains a single point of the run.
    """
    from mlflow.entities import Metric

    digest = data["fingerprint"][:DIGEST_LENGTH]
    return Metric(
        metric.key,
        metric.value,
        metric.timestamp,
        metric.step,
        model.model_id,
        data["name"],
        digest,
    )
