"""Samples of training."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pancseg.data import sampling
from pancseg.data.cache import Volume, VolumeCache
from pancseg.data.sampling import BatchSampler, Sampling, VolumeDataset
from pancseg.data.transforms import Preprocessing
from tests.tiny_root import case_of

SIZE = (8, 8, 8)
NUMBERS = Preprocessing("RAS", (8.0, 8.0, 8.0), (-200.0, 200.0), None)
EPOCHS = [(4, 2, [2, 2]), (5, 2, [2, 2]), (5, 3, [3, 2]), (1, 2, [1])]


def test_batches_of_epochs_and_processes_are_those_of_a_single_process():
    for per_epoch, batch_size, sizes in EPOCHS:  # without a last batch of one
        batches = list(BatchSampler(per_epoch, batch_size))
        assert [len(batch) for batch in batches] == sizes
        assert [n for batch in batches for n in batch] == list(range(sum(sizes)))
    assert list(BatchSampler(6, 2, lambda: 2)) == [[12, 13], [14, 15], [16, 17]]
    parts = [list(BatchSampler(8, 2, rank=rank, processes=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == list(BatchSampler(8, 4))


def volume(shape, voxel=None, code=1):
    """An image whose values tell voxels apart, with one labelled voxel or none."""
    image = (np.arange(math.prod(shape)) % 997).reshape(shape).astype(np.float16)
    label = np.zeros(shape, np.uint8)
    if voxel:
        label[voxel] = code
    return Volume(image, (1.0, 1.0, 1.0), label, np.argwhere(label).astype(np.int32))


def cache_of(*volumes):
    entries = [case_of(f"case{n}") for n in range(len(volumes))]
    return VolumeCache(Path(), Path(), NUMBERS, entries, loaded=list(volumes))


def patches(*volumes, margin=(0, 0, 0), structures=((1,),), **numbers):
    settings, batches = Sampling("patches", steps_per_epoch=100, **numbers), BatchSampler(200, 2)
    parts = (SIZE, margin, settings, structures)
    return sampling.PatchDataset(cache_of(*volumes), batches, 0, *parts)


@pytest.mark.parametrize("voxel", [(0, 0, 0), (29, 19, 24), (15, 0, 24)])
def test_a_share_of_the_patches_contains_a_labelled_voxel(voxel):
    volumes = volume((30, 20, 25), voxel), volume((30, 20, 25))
    dataset = patches(*volumes, foreground_share=2 / 3, jitter=0.5)
    labelled = [bool(dataset[n]["label"].any()) for n in range(60)]
    assert all(labelled[0::3]) and all(labelled[1::3]) and not all(labelled[2::3])


def test_a_patch_may_have_a_margin_and_extend_beyond_the_volume():
    numbers = {"foreground_share": 0.5, "jitter": 0.5}
    scan = volume((12, 20, 25), (0, 0, 0))
    plain, wide = patches(scan, **numbers), patches(scan, margin=(4, 6, 2), **numbers)
    for n in range(20):
        assert wide[n]["image"].shape == (1, 12, 14, 10)
        assert torch.equal(wide[n]["image"][:, 2:-2, 3:-3, 1:-1], plain[n]["image"])
    item = patches(volume((4, 20, 6), (2, 10, 3)), foreground_share=1.0)[0]  # centred in air
    assert (item["image"][0, :2] == 0).all() and (item["image"][0, 6:] == 0).all()
    assert item["label"][0, 2:6, :, 1:7].sum() == 1


def test_patches_come_from_everywhere_and_jitter_moves_the_labelled_voxel():
    dataset = patches(volume((30, 20, 25)))
    assert len({float(dataset[n]["image"][0, 0, 0, 0]) for n in range(400)}) > 250
    for jitter, fewest, most in ((0.0, 1, 1), (0.5, 100, 512)):
        dataset = patches(volume((60, 60, 60), (30, 30, 30)), foreground_share=1.0, jitter=jitter)
        places = {tuple(dataset[n]["label"][0].nonzero()[0].tolist()) for n in range(300)}
        assert fewest <= len(places) <= most


def test_labels_keep_their_codes_and_structures_take_turns_as_foreground():
    volumes = [volume(SIZE, (1, 2, 3), code) for code in (1, 2, 7)]
    whole = VolumeDataset(cache_of(*volumes))
    dataset = patches(*volumes, foreground_share=1.0, structures=[[1], [7], [2]])
    for items, codes in ((whole, [1, 2, 7]), (dataset, [1, 7, 2])):
        assert items[0]["label"].dtype == torch.uint8
        assert [items[n]["label"].max().item() for n in range(3)] == codes


def test_each_volume_is_drawn_once_an_epoch_in_an_order_of_its_own():
    cache = cache_of(*(volume((2, 2, 2)) for _ in range(20)))
    dataset = sampling.ShuffledDataset(cache, BatchSampler(20, 2), seed=5)
    names = [dataset[n]["name"] for n in range(40)]
    assert sorted(names[:20]) == sorted(names[20:]) == sorted(case.name for case in cache.entries)
    assert names[:20] != names[20:]
    assert (dataset[3]["batch_number"], dataset[3]["sample_index"]) == (1, 1)
