"""Which data a config means: a prepared file, or the phantom that is made on first use."""

from pathlib import Path
from typing import NamedTuple

from brainseg.config import DataConfig
from brainseg.core.errors import check
from brainseg.data.phantom import cohort
from brainseg.data.store import Store
from brainseg.data.volume import CHANNELS, CLASSES, patient_of


class DatasetInfo(NamedTuple):
    """What can be known of a cohort before anything is made or read in full."""

    patients: list[str]  # sorted names without dates
    size: tuple[int, int]  # height, width in pixels
    channels: list[str]
    classes: list[str]


def open_store(config: DataConfig) -> Store:
    """The prepared file; makes the phantom cohort if that is asked for and not there yet."""
    return Store(
        Path(config.path) if config.path is not None else cohort.ensure_cohort(config.phantom)
    )


def fingerprint(config: DataConfig) -> str | None:
    """The data's fingerprint; None where the phantom would have to be made first."""
    path = Path(config.path) if config.path is not None else cohort.cohort_file(config.phantom)
    if not path.is_file():
        return None
    with Store(path) as store:
        return store.fingerprint


def read_dataset_info(config: DataConfig) -> DatasetInfo:
    """Patients, size and channels, creating nothing. Raises RequestError (no such file), DataError (not such a file)."""
    if config.path is not None:
        path = Path(config.path)
        make = f"make it with python -m brainseg.prepare source={path if path.is_dir() else 'DIR'} output=FILE"
        check(
            path.is_file(),
            "data.path",
            path,
            "a folder, not a prepared file" if path.is_dir() else "no such file",
            make,
        )
        with Store(path) as store:
            found = DatasetInfo(
                sorted(set(store.patients)),
                (store.shape[2], store.shape[3]),
                store.channels,
                store.classes,
            )
    else:
        names = sorted({patient_of(name) for name in cohort.patient_names(config.phantom)})
        found = DatasetInfo(
            names, (config.phantom.size, config.phantom.size), list(CHANNELS), list(CLASSES)
        )
    known = config.volume is None or config.volume in found.channels
    check(
        known,
        "data.volume",
        config.volume,
        "no such channel",
        f"known: {', '.join(found.channels)}, or null for all",
    )
    return found._replace(patients=found.patients[: config.limit_patients])


def in_channels(config: DataConfig, found: DatasetInfo) -> int:
    """Channels of the network's input: those chosen, for the slice and its neighbours."""
    return (1 if config.volume is not None else len(found.channels)) * (2 * config.context + 1)
