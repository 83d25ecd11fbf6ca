"""Exceptions for the user. Their messages name setting or file, value, rule and remedy."""


class RequestError(ValueError):
    """An invalid request, reported in one line before anything is created. The exit code is 2."""


class DeviceMissingError(RequestError):
    """A requested device that this machine lacks.

    With device.on_missing=skip, a sweep skips the job.
    """


class InUseError(RequestError):
    """A run folder in which another process is working. A sweep leaves the job to that process."""


class DataError(ValueError):
    """Invalid data. The message names the file, volume or slice."""


def check(condition: bool, setting: str, value: object, rule: str, remedy: str = "") -> None:
    """Raise a one-line `RequestError` unless `condition` holds.

    The message has the form `setting=value: rule; remedy`.
    """
    if not condition:
        raise RequestError(f"{setting}={value}: {rule}" + (f"; {remedy}" if remedy else ""))


def shorten_error(error: object, length: int | None = 200) -> str:
    """Return the text of an error in one line, cut to `length` characters."""
    return " ".join(str(error).split())[:length]
