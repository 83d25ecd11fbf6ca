"""MLflow's model registry: a name, a version and an alias that lead to a run's LoggedModel. No file is copied, none is pickled."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brainseg.core.errors import DataError, RequestError, check
from brainseg.runs.run_folder import RunFolder
from brainseg.tracking.client import connect, short_timeouts, store_of, tracking_uri
from brainseg.tracking.lookup import SECONDS, model_of_run
from brainseg.tracking.names import experiment_name
from brainseg.tracking.runs import run_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

VERSIONS_TAG = (
    "mlflow.modelVersions"  # from which MLflow's page of a LoggedModel links to its versions
)


class FoundModel(NamedTuple):
    """A run's best checkpoint in MLflow."""

    uri: str  # the store
    run_id: str
    model: "LoggedModel"


class RegisteredModel(NamedTuple):
    version: int
    new: bool
    before: int | None  # the version that had the alias


def find_model(run: str, uri: str | None = None) -> FoundModel:
    """The LoggedModel of a run named by its folder, its MLflow id or runs:/ID; creates nothing.

    `uri` replaces the store that the folder names. Raises RequestError where MLflow does not know the run, or has no model of it.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    folder = Path(run)
    record = _record(folder) if (folder / "run.json").is_file() else None
    uri = store_of(record, folder, uri) if record else tracking_uri(uri)
    remedy = f"python -m brainseg.sync {run if record else 'runs'} brings it there"
    with short_timeouts(SECONDS):
        try:
            client = connect(uri, make=False)
            run_id = (
                _id_of(client, record, folder) if record else run.removeprefix("runs:/").strip("/")
            )
            check(run_id is not None, "run", run, f"MLflow does not know it, in {uri}", remedy)
            found = client.get_run(str(run_id))
            model = model_of_run(client, found)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise RequestError(
                f"run={run}: not found in {uri} ({' '.join(str(error).split())[:200]}); {remedy}"
            ) from error
    rule = f"it is {found.info.status} and has no model; a run logs it when it finishes"
    check(model is not None, "run", run, rule, f"if it has finished, {remedy}")
    assert model is not None
    return FoundModel(uri, found.info.run_id, model)


def register_model(found: FoundModel, name: str, alias: str | None) -> RegisteredModel:
    """Make the model a version of the registered model `name`, once, and give it the alias.

    What is registered is the checkpoint, not the run: a run that was extended since to a better one becomes a further version.
    Raises DataError when the store fails or refuses.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with short_timeouts(SECONDS):
        try:
            client = connect(found.uri, make=False)
            version = _version_of(client, name, found)
            new = version is None
            if version is None:
                version = _create(client, name, found)
            before = client.get_registered_model(name).aliases.get(alias) if alias else None
            if alias and str(before) != str(version):
                client.set_registered_model_alias(name, alias, str(version))
        except (MlflowException, SQLAlchemyError) as error:
            raise DataError(
                f"name={name}: not registered in {found.uri}: {' '.join(str(error).split())[:200]}"
            ) from error
    return RegisteredModel(version, new, int(before) if before else None)


def _record(folder: Path) -> dict[str, Any]:
    """What `run.json` says of the run and its store. Raises RequestError if it is not what a run writes."""
    try:
        facts = RunFolder(folder).facts
        where = facts["tracking"]
        tracking = (
            None if where is None else {"uri": where["uri"], "experiment": where["experiment"]}
        )
        return {"uid": str(facts["uid"]), "path": facts.get("path"), "tracking": tracking}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(
            f"{folder}/run.json: not what a run writes ({type(error).__name__}: {error})"
        ) from error


def _id_of(client: "MlflowClient", record: dict[str, Any], folder: Path) -> str | None:
    """Return MLflow's id of the run that mirrors the folder."""
    experiment = client.get_experiment_by_name(
        experiment_name((record["tracking"] or {"experiment": "brainseg"})["experiment"])
    )
    if experiment is None:
        return None
    run = run_of(client, experiment.experiment_id, record["uid"], folder)
    return run.info.run_id if run is not None else None


def _version_of(client: "MlflowClient", name: str, found: FoundModel) -> int | None:
    """The version of `name` that is this very model."""
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{found.run_id}'")
    same = [
        int(version.version)
        for version in versions
        if version.source == found.model.artifact_location
    ]
    return max(same, default=None)


def _create(client: "MlflowClient", name: str, found: FoundModel) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = found.model
    tags = {
        key: value
        for key, value in model.tags.items()
        if key in ("brainseg.uid", "checkpoint.sha256")
    }
    # The place itself, as `models:/ID` would be looked for in MLflow's global store, which need not be ours.
    place, run_id, model_id = model.artifact_location, found.run_id, model.model_id
    version = client.create_model_version(
        name, place, run_id, tags, await_creation_for=SECONDS, model_id=model_id
    )
    _link(client, model, name, int(version.version))
    return int(version.version)


def _link(client: "MlflowClient", model: "LoggedModel", name: str, version: int) -> None:
    """Let MLflow's page of the LoggedModel show the version, as `mlflow.register_model` does."""
    listed = json.loads(model.tags.get(VERSIONS_TAG, "[]"))
    client.set_logged_model_tags(
        model.model_id,
        {VERSIONS_TAG: json.dumps([*listed, {"name": name, "version": str(version)}])},
    )
