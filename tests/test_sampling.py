"""Which samples a step takes, and what they hold."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pancseg.dataset.kept_volumes import KeptVolumes
from pancseg.dataset.sampling import Patches, Sampling, Size, box_of
from pancseg.dataset.steps import Steps
from pancseg.dataset.volume_cache import Source, Volume
from pancseg.dataset.volume_plan import plan_volume
from pancseg.errors import PancsegError
from pancseg.learning.resunet import plan_levels

SIZE = (8, 8, 8)


@pytest.mark.parametrize(
    ("per_epoch", "batch_size", "sizes"),
    [(4, 2, [2, 2]), (5, 2, [2, 2]), (5, 3, [3, 2]), (1, 2, [1]), (3, 1, [1, 1, 1])],
)
def test_an_epoch_takes_all_but_a_last_batch_of_one(
    per_epoch: int, batch_size: int, sizes: list[int]
) -> None:
    steps = Steps(per_epoch, batch_size)
    batches = list(steps)
    assert [len(batch) for batch in batches] == sizes
    assert len(steps) == len(sizes)
    assert [n for batch in batches for n in batch] == list(range(sum(sizes)))


def test_an_epoch_that_was_begun_goes_on_and_the_next_one_follows() -> None:
    whole = list(Steps(6, 2)) + list(Steps(6, 2, lambda: (3, 0)))
    assert list(Steps(6, 2, lambda: (1, 1))) == whole[1:3]
    assert list(Steps(6, 2, lambda: (4, 1))) == whole[4:]
    assert whole[3] == [6, 7]


def test_processes_share_each_batch_of_one_process_with_all_of_it() -> None:
    alone = list(Steps(8, 4))
    parts = [list(Steps(8, 2, rank=rank, processes=2)) for rank in range(2)]
    assert [one + other for one, other in zip(*parts, strict=True)] == alone


def test_workers_get_the_batches_without_the_training() -> None:
    steps = Steps(4, 2, lambda: (0, 0))  # a lambda, as the trainer, crosses to no other process
    assert pickle.loads(pickle.dumps(steps)).together == 2


def volume(shape: Size, at: Size | None) -> Volume:
    """Values that tell where a voxel is; one labelled voxel."""
    image = (np.arange(np.prod(shape)) % 997).reshape(shape).astype(np.float16)
    label = np.zeros(shape, np.uint8)
    if at:
        label[at] = 1
    return Volume(image, label, np.argwhere(label).astype(np.int32))


def patches(
    *volumes: Volume, together: int = 2, margin: Size = (0, 0, 0), **numbers: Any
) -> Patches:
    sources = [Source(str(n), str(n), Path(), Path(), str(n), 1) for n in range(len(volumes))]
    kept = KeptVolumes(
        sources, lambda source: volumes[int(source.name)], "disk", torch.device("cpu")
    )
    sampling = Sampling("patches", steps_per_epoch=100, **numbers)
    return Patches(kept, Steps(100 * together, together), 0, SIZE, margin, sampling)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_share_of_the_patches_holds_the_organ_wherever_it_is_and_however_large_a_batch_is(
    together: int,
) -> None:
    for corner in ((0, 0, 0), (29, 19, 24), (15, 0, 24)):
        taken = patches(
            volume((30, 20, 25), corner), volume((30, 20, 25), None),
            together=together, foreground_share=2 / 3, jitter=0.5,
        )  # fmt: skip
        held = [bool(taken[n]["label"].any()) for n in range(60)]
        assert all(held[0::3])
        assert all(held[1::3])
        assert not all(held[2::3])


def test_a_margin_moves_no_patch_and_may_lie_beyond_the_volume() -> None:
    where = volume((12, 20, 25), (0, 0, 0))
    numbers = {"foreground_share": 0.5, "jitter": 0.5}
    plain, wide = patches(where, **numbers), patches(where, margin=(4, 6, 2), **numbers)
    for n in range(20):
        middle = wide[n]["image"][:, 2:-2, 3:-3, 1:-1]
        assert torch.equal(middle, plain[n]["image"])
        assert wide[n]["image"].shape == (1, 12, 14, 10)
        assert n % 2 or wide[n]["label"][:, 2:-2, 3:-3, 1:-1].any()


@pytest.mark.parametrize(("step_bytes", "fits"), [(0, True), (1_001_000, True), (1_002_000, False)])
def test_volumes_are_kept_on_the_gpu_where_they_fit_beside_a_step(
    step_bytes: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = volume((10, 10, 10), (1, 2, 3))  # of 3 bytes a voxel
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_005_000, 2_000_000))
    kept = KeptVolumes([], lambda source: one, "disk", torch.device("cpu"), step_bytes)
    kept.sources = [Source("0", "0", Path(), Path(), "0", 1)]
    assert kept.fit(torch.device("cuda")) is fits
    assert not kept.fit(torch.device("cpu"))


def test_without_a_share_patches_come_from_everywhere_alike() -> None:
    taken = patches(volume((30, 20, 25), None))
    firsts = torch.stack([taken[n]["image"][0, 0, 0, 0] for n in range(400)]).float()
    assert len(firsts.unique()) > 250
    assert taken[0]["image"].shape == (1, *SIZE)


def test_a_volume_smaller_than_a_patch_lies_in_its_middle_with_air_around() -> None:
    small = volume((4, 20, 6), (2, 10, 3))
    taken = patches(small, foreground_share=1.0)[0]
    assert (taken["image"][0, :2] == 0).all()
    assert (taken["image"][0, 6:] == 0).all()
    assert taken["label"][0, 2:6, :, 1:7].sum() == 1


def test_a_box_beyond_the_edge_keeps_its_place() -> None:
    array = np.arange(27, dtype=np.float16).reshape(3, 3, 3)
    box = box_of(array, (-1, 1, 2), (3, 2, 2))
    expected = np.pad(array, ((1, 0), (0, 0), (0, 1)))[0:3, 1:3, 2:4]
    assert np.array_equal(box.numpy(), expected)


def test_the_jitter_moves_the_organ_about_in_the_patch() -> None:
    for jitter, fewest, most in ((0.0, 1, 1), (0.5, 100, 512)):
        taken = patches(volume((60, 60, 60), (30, 30, 30)), foreground_share=1.0, jitter=jitter)
        places = {tuple(taken[n]["label"][0].nonzero()[0].tolist()) for n in range(300)}
        assert fewest <= len(places) <= most


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"kind": "all"}, "expected whole or patches"),
        ({"kind": "patches"}, r"steps_per_epoch=0: expected 1 or more"),
        ({"jitter": 0.7}, r"jitter=0\.7: expected 0 to 0\.5"),
        ({"foreground_share": -1}, "expected 0 to 1"),
    ],
)
def test_a_sampling_that_is_none_is_refused(numbers: dict[str, Any], says: str) -> None:
    with pytest.raises(PancsegError, match=says):
        Sampling(**numbers)


def test_what_is_given_is_not_planned() -> None:
    scans: dict[str, Any] = {"shapes": [(512, 512, 200)], "spacings_mm": [(0.75, 0.75, 2.0)]}
    numbers: dict[str, Any] = {"patch_voxels": 500_000, "field_mm": (220, 180, 160)}
    assert plan_volume(**scans, **numbers, spacing_mm=(1, 1, 1)).spacing_mm == (1, 1, 1)
    given = plan_volume(**scans, **numbers, patch=(64, 64, 64))
    assert given.patch == (64, 64, 64)
    assert math.prod(np.multiply(given.patch, given.spacing_mm)) >= 0.9 * math.prod((220, 180, 160))


@pytest.mark.parametrize("patch_voxels", [100_000, 500_000, 4_000_000])
@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 5.0), (0.8, 0.8, 0.8), (3.0, 3.0, 3.0)])
def test_a_planned_patch_sees_the_organ_and_fits_the_machine(
    patch_voxels: int, spacing_mm: tuple[float, ...]
) -> None:
    shape = [round(mm / step) for mm, step in zip((360, 330, 400), spacing_mm, strict=True)]
    plan = plan_volume([shape], [spacing_mm], patch_voxels=patch_voxels, field_mm=(220, 180, 160))
    seen_mm = np.multiply(plan.patch, plan.spacing_mm)
    assert np.prod(plan.patch) <= patch_voxels
    assert (seen_mm >= 0.6 * np.array((220, 180, 160))).all()
    assert all(side % (32 if side > 128 else 16) == 0 for side in plan.patch)
    strides, _ = plan_levels(plan.patch, plan.spacing_mm)
    assert not (np.array(plan.patch) % np.prod(strides, axis=0)).any()
    assert all(new >= old for new, old in zip(plan.spacing_mm, spacing_mm, strict=True))
