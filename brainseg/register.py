"""Give a run's checkpoint a name and an alias in MLflow's model registry.

    python -m brainseg.register run=runs/RUN name=lgg                 alias best
    python -m brainseg.register run=runs:/ID name=lgg alias=candidate tracking.uri=http://server:5000

The version refers to the checkpoint that the run logged. No file is copied. Every command then
accepts `checkpoint=models:/lgg@best` or `checkpoint=models:/lgg/1`. Registering the same checkpoint
again makes no second version.
"""

import shlex

from brainseg.cli.main import run_command
from brainseg.config import RegisterConfig
from brainseg.tracking import registry as mlflow_registry
from brainseg.tracking.client import tracking_uri, ui_url


def run(config: RegisterConfig) -> int:
    """Register the checkpoint, print the result and return exit code 0."""
    checkpoint = mlflow_registry.find_checkpoint(config.run, config.tracking.uri)
    registered = mlflow_registry.register_checkpoint(checkpoint, config.name, config.alias)
    version, previous = registered.version, registered.previous_version
    description = f"version {version} of {config.name}"
    print(
        f"registered:    {description}"
        if registered.is_new
        else f"nothing to do: this checkpoint is already {description}"
    )
    name = f"models:/{config.name}/{version}"
    if config.alias:
        note = f", taken from version {previous}" if previous not in (None, version) else ""
        print(f"alias:         {config.alias}{note}")
        name = f"models:/{config.name}@{config.alias}"
    print(f"MLflow:        {ui_url(checkpoint.uri)}/#/models/{config.name}/versions/{version}")
    # The next command needs the store only if the default is another one.
    environment = (
        ""
        if checkpoint.uri == tracking_uri(None)
        else f"MLFLOW_TRACKING_URI={shlex.quote(checkpoint.uri)} "
    )
    print(f"next:          {environment}python -m brainseg.evaluate checkpoint={name}")
    return 0


def check_request(config: RegisterConfig) -> None:
    """Check the request before anything is created. Raises RequestError."""
    mlflow_registry.find_checkpoint(config.run, config.tracking.uri)


def main() -> None:
    """Run the command `python -m brainseg.register`, also called `brainseg register`."""
    run_command("register", run, check_request)


if __name__ == "__main__":
    main()
