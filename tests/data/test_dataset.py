"""Slices: the same numbers from memory or from the file, one by one or in a batch."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainseg.core.errors import RequestError
from brainseg.data.dataset import MRIDataset, Sample
from brainseg.data.epoch_order import epoch_order


@pytest.fixture(scope="module")
def data(phantom_file: Path) -> MRIDataset:
    return MRIDataset(phantom_file)


def test_a_sample_is_the_files_slice_normalised_by_its_volume(data: MRIDataset) -> None:
    store = data.store
    row = 19  # the fourth slice of the third volume
    sample = data[row]
    raw = store.images(row, row + 1)[0].astype(np.float32)
    low, high = store.low[2][:, None, None], store.high[2][:, None, None]
    expected = np.clip((raw - low) / (high - low), 0, 1)
    assert isinstance(sample, Sample)
    assert np.array_equal(sample.image.numpy(), expected)
    assert np.array_equal(sample.mask.numpy(), store.masks(row, row + 1)[0])
    assert (sample.patient, sample.slice_number) == (store.volumes[2], 4)
    assert (sample.image.dtype, sample.mask.dtype) == (torch.float32, torch.uint8)


@given(
    st.lists(st.integers(0, 79), min_size=1, max_size=12),
    st.integers(0, 2),
    st.sampled_from([None, "FLAIR"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_memory_and_file_give_the_same_batches(
    phantom_file: Path, positions: list[int], context: int, volume: str | None
) -> None:
    lazy = MRIDataset(phantom_file, channel=volume, context=context)
    held = MRIDataset(phantom_file, channel=volume, context=context).hold()
    for one, other in zip(lazy.gather(positions), held.gather(positions), strict=True):
        assert torch.equal(one, other)
    image = held.gather(positions).image
    assert image.shape == (len(positions), held.channels, 32, 32)
    for index, position in enumerate(positions):
        assert torch.equal(lazy[position].image, image[index])


def test_context_repeats_the_edge_and_never_crosses_a_volume(phantom_file: Path) -> None:
    plain, wide = MRIDataset(phantom_file), MRIDataset(phantom_file, context=1)
    for position, (before, after) in {0: (0, 1), 7: (6, 7), 8: (8, 9), 12: (11, 13)}.items():
        below, centre, above = wide[position].image.split(3)
        assert torch.equal(below, plain[before].image)
        assert torch.equal(centre, plain[position].image)
        assert torch.equal(above, plain[after].image)


def test_patients_indices_views_and_slicing(phantom_file: Path, data: MRIDataset) -> None:
    name = data.store.patients[4]
    part = MRIDataset(phantom_file, patients=[name])
    assert len(part) == 8
    assert set(part.patients[:]) == {data.store.volumes[4]}
    assert part.slices[:] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert part.slices[-1] == 8
    assert torch.equal(part.images[3], data[35].image)
    assert torch.equal(part.masks[3], data[35].mask)
    cut = part[2:5]
    assert isinstance(cut, MRIDataset)
    assert cut.slices[:] == [3, 4, 5]
    chosen = MRIDataset(phantom_file, indices=[40, 3])
    assert torch.equal(chosen[1].image, data[3].image)
    with pytest.raises(IndexError, match="index 8 is out of range for 8 slices"):
        part[8]


def test_a_wrong_request_names_the_known(phantom_file: Path) -> None:
    with pytest.raises(RequestError, match=r"data\.channel=T2.*FLAIR"):
        MRIDataset(phantom_file, channel="T2")
    with pytest.raises(RequestError, match="Nobody"):
        MRIDataset(phantom_file, patients=["Nobody"])
    with pytest.raises(RequestError, match=r"0\.\.79"):
        MRIDataset(phantom_file, indices=[80])


def test_it_works_in_a_loader_of_several_processes(data: MRIDataset) -> None:
    data[0]  # opens the file before the fork
    loader = torch.utils.data.DataLoader(data, batch_size=10, num_workers=2)
    images = torch.cat([batch.image for batch in loader])
    assert torch.equal(images, data.gather(range(80)).image)
    assert len(pickle.loads(pickle.dumps(data))) == 80  # noqa: S301  (what a spawned worker gets)


def test_a_constant_channel_gives_zeros(data: MRIDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = data._low.clone()
    limits[0, 1] = data._high[0, 1]
    monkeypatch.setattr(data, "_low", limits)
    image = data[4].image
    assert not image[1].any()
    assert image[0].any()


def test_an_epoch_takes_every_slice_once_and_another_order_each_time(data: MRIDataset) -> None:
    first, second = epoch_order(data, 0, 0), epoch_order(data, 0, 1)
    assert sorted(first) == sorted(second) == list(range(80))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(data, 0, 0))
    assert not np.array_equal(first, epoch_order(data, 1, 0))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.625, 1.0])
def test_a_share_of_tumour_slices(data: MRIDataset, share: float) -> None:
    order = epoch_order(data, 0, 0, share)
    tumour = data.has_tumour
    assert len(order) == 80
    assert tumour[order].sum() == round(share * 80)
    for kind in (
        tumour,
        ~tumour,
    ):  # as evenly as it goes: no slice is drawn twice more than another
        counts = np.bincount(order, minlength=80)[kind]
        assert counts.max() - counts.min() <= 1


def test_what_is_held_on_a_gpu_must_fit_there_too(
    data: MRIDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.fits() and data.fits("cpu")
    for free, fits in ((2 * data.bytes_needed() + 2, True), (2 * data.bytes_needed(), False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert data.fits("cuda") is fits
    monkeypatch.setattr(
        os,
        "sysconf_names",
        {name: number for name, number in os.sysconf_names.items() if "AVPHYS" not in name},
    )
    assert data.fits(), "where the system does not say what is free, as on a Mac"


def test_the_earlier_name_of_channel_is_accepted(phantom_file: Path) -> None:
    assert MRIDataset(phantom_file, volume="FLAIR").channel == "FLAIR"


@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_patients_can_be_drawn_evenly(phantom_file: Path, share: float | None) -> None:
    """Of two patients neither has more than one slice more than the other, with tumour and without."""
    whole = MRIDataset(phantom_file)
    # One patient has three slices, the others eight.
    data = MRIDataset(phantom_file, indices=np.r_[2:5, 8 : len(whole)])
    order = epoch_order(data, seed=1, epoch=2, tumour_share=share, even_patients=True)
    assert len(order) == len(data)
    tumour = data.has_tumour[order]
    assert tumour.sum() == round(len(data) * (data.has_tumour.mean() if share is None else share))
    for kind in (True, False):
        drawn = data.patient_index(order[tumour == kind])
        able = np.unique(data.patient_index(np.flatnonzero(data.has_tumour == kind)))
        counts = np.array([(drawn == patient).sum() for patient in able])
        assert not len(drawn) or counts.max() - counts.min() <= 1, counts
    again = epoch_order(data, seed=1, epoch=2, tumour_share=share, even_patients=True)
    other = epoch_order(data, seed=1, epoch=3, tumour_share=share, even_patients=True)
    assert np.array_equal(order, again) and not np.array_equal(order, other)
