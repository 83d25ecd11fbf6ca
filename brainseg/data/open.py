"""Access to the data of a config, a prepared file or the phantom that is made on first use."""

from pathlib import Path
from typing import NamedTuple

from brainseg.config import DataConfig
from brainseg.core.errors import check
from brainseg.data.phantom import cohort
from brainseg.data.store import Store
from brainseg.data.volume import CHANNELS, CLASSES, patient_of


class DatasetInfo(NamedTuple):
    """Properties of a cohort that are known before the data are made or read in full."""

    # Sorted names without dates.
    patients: list[str]
    # Height and width in pixels.
    size: tuple[int, int]
    channels: list[str]
    classes: list[str]


def open_store(config: DataConfig) -> Store:
    """Return the prepared file, or the phantom cohort, which is made if its file does not exist."""
    return Store(
        Path(config.path) if config.path is not None else cohort.ensure_cohort(config.phantom)
    )


def read_fingerprint(config: DataConfig) -> str | None:
    """Return the fingerprint of the data, or None if there is no file, as before the first use."""
    path = Path(config.path) if config.path is not None else cohort.cohort_file(config.phantom)
    if not path.is_file():
        return None
    with Store(path) as store:
        return store.fingerprint


def read_dataset_info(config: DataConfig) -> DatasetInfo:
    """Return patients, size, channels and classes without creating a file.

    Raises RequestError if the file does not exist, and DataError if it is not a prepared file.
    """
    if config.path is not None:
        path = Path(config.path)
        source = path if path.is_dir() else "DIR"
        check(
            path.is_file(),
            "data.path",
            path,
            "a folder, not a prepared file" if path.is_dir() else "no such file",
            f"make it with python -m brainseg.prepare source={source} output=FILE",
        )
        with Store(path) as store:
            info = DatasetInfo(
                sorted(set(store.patients)),
                (store.shape[2], store.shape[3]),
                store.channels,
                store.classes,
            )
    else:
        names = sorted({patient_of(name) for name in cohort.patient_names(config.phantom)})
        info = DatasetInfo(
            names, (config.phantom.size, config.phantom.size), list(CHANNELS), list(CLASSES)
        )
    check(
        config.channel is None or config.channel in info.channels,
        "data.channel",
        config.channel,
        "the data have no such channel",
        f"choose from {', '.join(info.channels)}, or null for all",
    )
    return info._replace(patients=info.patients[: config.limit_patients])


def count_in_channels(config: DataConfig, info: DatasetInfo) -> int:
    """Return the number of input channels, the selected channels of a slice and its neighbours."""
    return (1 if config.channel is not None else len(info.channels)) * (2 * config.context + 1)
