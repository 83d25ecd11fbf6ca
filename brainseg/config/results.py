"""Settings of brainseg.compare, brainseg.register and brainseg.ui, which read finished runs."""

from dataclasses import dataclass

from omegaconf import MISSING

from brainseg.config.evaluate import CLINICAL
from brainseg.config.fields import check_choice, check_range, setting
from brainseg.core.errors import check


@dataclass
class CompareTrackingConfig:
    """Settings of experiment tracking in `brainseg.compare`."""

    name: str = setting("mlflow", "mlflow, none")
    uri: str | None = setting(
        None, "URI of the MLflow server or database; null: the one that the runs used"
    )
    experiment: str | None = setting(None, "MLflow experiment of which all runs are compared")

    def __post_init__(self) -> None:
        check_choice("tracking.name", self.name, ("mlflow", "none"))


@dataclass
class CompareConfig:
    """Settings of `brainseg.compare`."""

    runs: list[str] | None = setting(
        None,
        "folders of runs or evaluations, parent folders of several, or MLflow IDs; the first is "
        "the baseline",
    )
    sweep: str | None = setting(None, "ID of a sweep as it was printed, or last")
    baseline: str | None = setting(
        None,
        "run, or name in the table, with which the others are compared; null: the first of runs, "
        "or the best run",
    )
    root: str = setting("runs", "folder in which runs and sweeps are searched for")
    clinical: str | None = setting(None, CLINICAL)
    output: str | None = setting(
        None, "folder to write to; null: the folder of the sweep, or comparisons/NAME"
    )
    viewer: int = setting(
        20, "number of patients in viewer.html: worst, median and best cases; 0: no viewer"
    )
    tracking: CompareTrackingConfig = setting(CompareTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        # OmegaConf accepts a list within a list here.
        is_flat = all(isinstance(run, str) for run in self.runs or ())
        check(
            is_flat,
            "runs",
            self.runs,
            "must be a list of names",
            "write for example runs=[runs/A,runs/B]",
        )
        check_range("viewer", self.viewer, 0, 1000)


@dataclass
class RegisterTrackingConfig:
    """Settings of experiment tracking in `brainseg.register`."""

    uri: str | None = setting(
        None,
        "URI of the MLflow server or database; null: the one that the run used, or "
        "MLFLOW_TRACKING_URI, or mlflow.db in the current folder",
    )


@dataclass
class RegisterConfig:
    """Settings of `brainseg.register`."""

    run: str = setting(MISSING, "folder or MLflow ID of a finished run, or runs:/ID")
    name: str = setting(
        MISSING, "name in MLflow's model registry; the first run registered there is version 1"
    )
    alias: str | None = setting(
        "best", "alias for this version, taken away from any other version; null: none"
    )
    tracking: RegisterTrackingConfig = setting(RegisterTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        for setting_name, value in (("name", self.name), ("alias", self.alias or "x")):
            is_plain = (
                value.isascii()
                and value.replace("-", "").replace("_", "").replace(".", "").isalnum()
            )
            check(
                is_plain or value == MISSING,
                setting_name,
                value,
                "is part of models:/NAME@ALIAS, so only letters, digits, -, _ and . are allowed",
            )
        alias = self.alias or ""
        is_reserved = alias.lower() == "latest" or (alias[:1] in "vV" and alias[1:].isdigit())
        check(
            not is_reserved,
            "alias",
            alias,
            "MLflow reserves latest, v1, v2 ...",
            "choose another alias, such as best",
        )


@dataclass
class UiTrackingConfig:
    """Settings of experiment tracking in `brainseg.ui`."""

    uri: str | None = setting(
        None,
        "URI of the MLflow server or database; null: MLFLOW_TRACKING_URI, or mlflow.db in the "
        "current folder",
    )


@dataclass
class UiConfig:
    """Settings of `brainseg.ui`."""

    port: int = setting(5000, "first port to try; the next free port is used")
    browser: bool = setting(True, "open the page in a browser, if this machine has a display")
    tracking: UiTrackingConfig = setting(UiTrackingConfig, "MLflow")

    def __post_init__(self) -> None:
        check_range("port", self.port, 1, 65535)
