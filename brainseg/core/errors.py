"""The errors that a user is meant to read: each names the setting or file, its value, the rule, and the remedy."""


class RequestError(ValueError):
    """The request was wrong: said in one line before anything is created, exit code 2."""


class DeviceMissingError(RequestError):
    """The device asked for is not on this machine: under device.on_missing=skip, a job of a sweep is then left out."""


class InUseError(RequestError):
    """Another process is at work in the run folder: a sweep leaves that job to it."""


class DataError(ValueError):
    """The data are not what they must be: names the file, volume or slice."""


def check(condition: bool, setting: str, value: object, rule: str, remedy: str = "") -> None:
    """Raise a one-line `RequestError` that names setting, value, rule and remedy unless `condition` holds."""
    if not condition:
        raise RequestError(f"{setting}={value}: {rule}" + (f"; {remedy}" if remedy else ""))
