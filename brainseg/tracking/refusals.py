"""Permanent refusals by MLflow and their remedies. MLflow's error codes identify the refusals."""

from http import HTTPStatus

# The statuses of client errors that may pass by themselves. 499 means that the request was
# cancelled.
TRANSIENT_STATUSES = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
    499,
)
PASSWORD_REMEDY = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
    "to the values of an account with write access"
)
REMEDIES = {
    HTTPStatus.UNAUTHORIZED: PASSWORD_REMEDY,
    HTTPStatus.FORBIDDEN: PASSWORD_REMEDY,
    HTTPStatus.NOT_FOUND: "check tracking.uri: it must be the address of an MLflow 3 server",
    HTTPStatus.NOT_IMPLEMENTED: "update the MLflow server to version 3",
}
# The remedy of every other permanent refusal.
DEFAULT_REMEDY = (
    "correct the cause that MLflow names, or send the run to another store with tracking.uri=URI"
)


class RefusedError(ValueError):
    """MLflow cannot accept the run in the present state. The message names the remedy."""


def remedy_of(error: Exception) -> str | None:
    """Return the remedy of a permanent error, or None for an error that may pass by itself."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, ValueError | KeyError) and not isinstance(error, OSError):
        # A file of the run folder is not valid, or the request names something that does not exist.
        return "correct it"
    if not isinstance(error, MlflowException):
        return None
    status = error.get_http_status_code()
    if status == HTTPStatus.NOT_IMPLEMENTED or (
        400 <= status < 500 and status not in TRANSIENT_STATUSES
    ):
        return REMEDIES.get(HTTPStatus(status), DEFAULT_REMEDY)
    return None
