"""Give a run's checkpoint a name and an alias in MLflow's model registry, so that others can say which network they mean.

    python -m brainseg.register run=runs/RUN name=lgg                 alias best
    python -m brainseg.register run=runs:/ID name=lgg alias=candidate tracking.uri=http://server:5000

The version leads to the checkpoint that the run logged: no file is copied. `checkpoint=models:/lgg@best` or `models:/lgg/1` then
names it in every command. Registering the same checkpoint again makes no second version.
"""

import shlex

from brainseg.cli.main import run_command
from brainseg.config import RegisterConfig
from brainseg.tracking import registry as mlflow_registry
from brainseg.tracking.client import tracking_uri, ui_url


def run(config: RegisterConfig) -> int:
    """Register and print; returns the exit code 0."""
    found = mlflow_registry.find_model(config.run, config.tracking.uri)
    done = mlflow_registry.register_model(found, config.name, config.alias)
    which = f"version {done.version} of {config.name}"
    print(
        f"registered:    {which}"
        if done.new
        else f"nothing to do: this checkpoint is {which} already"
    )
    name = f"models:/{config.name}/{done.version}"
    if config.alias:
        moved = (
            f", taken from version {done.before}" if done.before not in (None, done.version) else ""
        )
        print(f"alias:         {config.alias}{moved}")
        name = f"models:/{config.name}@{config.alias}"
    print(f"MLflow:        {ui_url(found.uri)}/#/models/{config.name}/versions/{done.version}")
    elsewhere = (
        "" if found.uri == tracking_uri(None) else f"MLFLOW_TRACKING_URI={shlex.quote(found.uri)} "
    )
    print(f"next:          {elsewhere}python -m brainseg.evaluate checkpoint={name}")
    return 0


def check_request(config: RegisterConfig) -> None:
    """All that can be refused before anything is created. Raises RequestError."""
    mlflow_registry.find_model(config.run, config.tracking.uri)


def main() -> None:
    """Entry point of `python -m brainseg.register` and `brainseg register`."""
    run_command("register", run, check_request)


if __name__ == "__main__":
    main()
