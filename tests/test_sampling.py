"""Samples of training, and the plan of patches."""

import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pancseg.data import sampling
from pancseg.data.cache import Volume, VolumeCache
from pancseg.data.sampling import BatchSampler, Sampling, VolumeDataset
from pancseg.data.transforms import Preprocessing, make_plan
from pancseg.errors import PancsegError
from pancseg.models.resunet import plan_levels
from tests.tiny_root import case_of

SIZE = (8, 8, 8)
NUMBERS = Preprocessing("RAS", (8.0, 8.0, 8.0), (-200.0, 200.0), None)
EPOCHS = [(4, 2, [2, 2]), (5, 2, [2, 2]), (5, 3, [3, 2]), (1, 2, [1]), (3, 1, [1, 1, 1])]


def test_batches_of_epochs_and_processes_are_those_of_a_single_process():
    for per_epoch, batch_size, sizes in EPOCHS:  # without a last batch of one
        batches = list(BatchSampler(per_epoch, batch_size))
        assert [len(batch) for batch in batches] == sizes
        assert [n for batch in batches for n in batch] == list(range(sum(sizes)))
    sampler = BatchSampler(6, 2, lambda: 2)
    assert list(sampler) == [[12, 13], [14, 15], [16, 17]]
    assert pickle.loads(pickle.dumps(sampler)).global_batch_size == 2  # without the lambda
    parts = [list(BatchSampler(8, 2, rank=rank, processes=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == list(BatchSampler(8, 4))


def volume(shape, voxel=None, code=1):
    """An image whose values tell voxels apart, with one labelled voxel or none."""
    image = (np.arange(math.prod(shape)) % 997).reshape(shape).astype(np.float16)
    label = np.zeros(shape, np.uint8)
    if voxel:
        label[voxel] = code
    return Volume(image, label, np.argwhere(label).astype(np.int32))


def cache_of(*volumes):
    entries = [case_of(f"case{n}") for n in range(len(volumes))]
    return VolumeCache(Path(), Path(), NUMBERS, entries, loaded=list(volumes))


def patches(*volumes, batch_size=2, margin=(0, 0, 0), structures=((1,),), **numbers):
    settings = Sampling("patches", steps_per_epoch=100, **numbers)
    batches, cache = BatchSampler(100 * batch_size, batch_size), cache_of(*volumes)
    return sampling.PatchDataset(cache, batches, 0, SIZE, margin, settings, structures)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("voxel", [(0, 0, 0), (29, 19, 24), (15, 0, 24)])
def test_a_share_of_the_patches_contains_a_labelled_voxel(batch_size, voxel):
    volumes = volume((30, 20, 25), voxel), volume((30, 20, 25))
    dataset = patches(*volumes, batch_size=batch_size, foreground_share=2 / 3, jitter=0.5)
    labelled = [bool(dataset[n]["label"].any()) for n in range(60)]
    assert all(labelled[0::3]) and all(labelled[1::3]) and not all(labelled[2::3])


def test_a_patch_may_have_a_margin_and_extend_beyond_the_volume():
    numbers = {"foreground_share": 0.5, "jitter": 0.5}
    scan = volume((12, 20, 25), (0, 0, 0))
    plain, wide = patches(scan, **numbers), patches(scan, margin=(4, 6, 2), **numbers)
    for n in range(20):
        assert wide[n]["image"].shape == (1, 12, 14, 10)
        assert torch.equal(wide[n]["image"][:, 2:-2, 3:-3, 1:-1], plain[n]["image"])
        assert n % 2 or wide[n]["label"][:, 2:-2, 3:-3, 1:-1].any()
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
    assert (dataset[3]["step"], dataset[3]["batch_index"]) == (1, 1)
    assert sampling.ShuffledDataset(cache, BatchSampler(20, 2), seed=6)[0]["name"] != names[0]


def test_sampling_out_of_range_is_refused():
    for numbers, message in (
        ({"kind": "all"}, "expected whole or patches"),
        ({"kind": "patches"}, r"steps_per_epoch=0: expected 1 or more"),
        ({"jitter": 0.7}, r"jitter=0\.7: expected 0 to 0\.5"),
    ):
        with pytest.raises(PancsegError, match=message):
            Sampling(**numbers)


LIMITS = {"patch_voxels": 500_000, "field_mm": (220, 180, 160)}
COARSE, FINE = "288 x 240 x 192 mm", "96 x 80 x 64 voxels of 2.32 x 2.32 x 2.32 mm"
PLANS = [((128, 128, 96), (3, 3, 3), COARSE), ((512, 512, 200), (0.75, 0.75, 2), FINE)]


@pytest.mark.parametrize(("shape", "spacing_mm", "plan"), PLANS)
def test_a_plan_is_of_the_median_spacing_unless_it_would_cover_too_little(shape, spacing_mm, plan):
    cases = [SimpleNamespace(shape=shape, spacing_mm=spacing_mm)]
    assert plan in str(make_plan(cases, **LIMITS))
    assert make_plan(cases, **LIMITS, spacing_mm=(1, 1, 1)).spacing_mm == (1, 1, 1)
    given = make_plan(cases, **LIMITS, spatial_size=(64, 64, 64))
    assert given.spatial_size == (64, 64, 64)
    assert math.prod(np.multiply(given.spatial_size, given.spacing_mm)) >= 0.9 * 220 * 180 * 160


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 5.0), (0.8, 0.8, 0.8), (3.0, 3.0, 3.0)])
def test_a_planned_patch_covers_the_field_fits_the_machine_and_suits_a_network(spacing_mm):
    shape = np.rint(np.divide((360, 330, 400), spacing_mm)).astype(int)
    cases = [SimpleNamespace(shape=shape, spacing_mm=spacing_mm)]
    for patch_voxels in (100_000, 4_000_000):
        plan = make_plan(cases, patch_voxels, (220, 180, 160))
        assert math.prod(plan.spatial_size) <= patch_voxels
        covered_mm = np.multiply(plan.spatial_size, plan.spacing_mm)
        assert (covered_mm >= 0.6 * np.array((220, 180, 160))).all()
        strides, _ = plan_levels(plan.spatial_size, plan.spacing_mm)
        assert not (np.array(plan.spatial_size) % np.prod(strides, axis=0)).any()
