"""What MLflow refuses for good, and what the user can do about it; told apart by MLflow's error codes."""

from http import HTTPStatus

NOT_NOW = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
    499,
)  # the last: cancelled
PASSWORD = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of an account that may write there"
REMEDIES = {
    HTTPStatus.UNAUTHORIZED: PASSWORD,
    HTTPStatus.FORBIDDEN: PASSWORD,
    HTTPStatus.NOT_FOUND: "check tracking.uri: it must be the address of an MLflow server of version 3",
    HTTPStatus.NOT_IMPLEMENTED: "update the MLflow server to version 3",
}
ELSEWHERE = (
    "correct the cause that MLflow names, or send the run to another store with tracking.uri=URI"
)


class RefusedError(ValueError):
    """MLflow cannot take the run as things are. The message names the remedy."""


def remedy_of(error: Exception) -> str | None:
    """Return what the user can do about an error that waiting does not cure; None for one that may pass."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, ValueError | KeyError) and not isinstance(error, OSError):
        # A file of the run folder is not what a run writes, or the request names what is not there.
        return "correct it"
    if not isinstance(error, MlflowException):
        return None
    status = error.get_http_status_code()
    if status == HTTPStatus.NOT_IMPLEMENTED or (400 <= status < 500 and status not in NOT_NOW):
        return REMEDIES.get(HTTPStatus(status), ELSEWHERE)
    return None
