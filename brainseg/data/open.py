"""Access to the data of a config, a prepared file or the phantom that is made on first use."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from brainseg.config import DataConfig, SplitConfig
from brainseg.core.errors import check
from brainseg.data.dataset import MRIDataset
from brainseg.data.input_settings import Size, window_size
from brainseg.data.phantom import cohort
from brainseg.data.split import Split, make_split
from brainseg.data.store import SliceStore, Store
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


class RunData(NamedTuple):
    """The data of a training run: the file, the split, and the slices of each part."""

    store: Store
    split: Split
    # Cut to the training window if there is one. The other parts have complete slices.
    train: MRIDataset
    validation: MRIDataset
    test: MRIDataset


def open_run_data(config: DataConfig, split_config: SplitConfig) -> RunData:
    """Open the file and assign its patients to training, validation and test.

    No pixel is read, unless the phantom has to be made. Raises RequestError and DataError.
    """
    store = open_store(config)
    split = make_split(split_config, read_dataset_info(config).patients)
    window = window_size(store, config.window, split.train)
    return RunData(
        store,
        split,
        open_dataset(store, config, split.train, window),
        open_dataset(store, config, split.validation),
        open_dataset(store, config, split.test),
    )


def open_dataset(
    store: SliceStore, config: DataConfig, patients: Sequence[str], window: Size | None = None
) -> MRIDataset:
    """Return the slices of the patients as the input of a network, as `config` describes it."""
    return MRIDataset(
        store,
        patients=patients,
        channel=config.channel,
        context=config.context,
        context_step=config.context_step,
        intensity=config.intensity,
        window=window,
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
