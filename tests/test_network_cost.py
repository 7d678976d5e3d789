"""What a network costs, by hand, by measurement, and as the page says it."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from pancseg import parallel
from pancseg.errors import PancsegError
from pancseg.learning import memory_advice
from pancseg.learning.memory_advice import available_memory, check_memory
from pancseg.learning.network_cost import cost_of, describe
from pancseg.learning.network_sizes import check_spatial_size
from tests.test_networks import IO, PAGE, UNET, model_of, options

BYTES = 4
TINY: dict[str, Any] = {**UNET, "channels": [4, 8], "strides": [2], "num_res_units": 0}
MEASURE = """
import json, sys
from pathlib import Path
import torch
from monai.losses import DiceCELoss
from torch import nn
from pancseg.learning.building import build

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

def step(size):
    image = torch.rand(2, 1, *size)
    optimizer = torch.optim.Adam(network.parameters())
    loss(network(image), (image > 0.9).float()).backward()
    optimizer.step()

model, size = json.loads(sys.argv[1])
torch.set_num_threads(1)
network, loss = build(model, nn.Module), DiceCELoss(to_onehot_y=True, softmax=True)
step([16, 16, 16])  # loads what a first step loads
before = kilobytes("VmRSS")
step(size)
print(1024 * (kilobytes("VmHWM") - before))
"""


def test_a_convolution_costs_what_is_counted_by_hand() -> None:
    conv = {
        "_target_": "monai.networks.blocks.Convolution", "spatial_dims": 3, "in_channels": 1,
        "out_channels": 2, "kernel_size": 3, "conv_only": True,
    }  # fmt: skip
    cost = cost_of(conv, [8, 8, 8], 2)
    assert cost.parameters == 27 * 2 + 2
    assert cost.multiply_adds == 27 * 2 * 8**3
    weights = BYTES * cost.parameters
    logits = BYTES * 2 * 2 * 8**3
    assert cost.step_bytes > 4 * weights + logits


def test_a_step_costs_by_the_batch_the_optimiser_and_the_precision() -> None:
    one, two = (cost_of(TINY, [32, 32, 32], batch) for batch in (1, 2))
    assert two.multiply_adds == one.multiply_adds
    fixed = 4 * BYTES * one.parameters
    assert two.step_bytes - fixed == pytest.approx(2 * (one.step_bytes - fixed), rel=0.02)
    plain = cost_of(TINY, [32, 32, 32], 2, optimizer_states=0)
    assert two.step_bytes - plain.step_bytes == 2 * BYTES * one.parameters
    half = cost_of(TINY, [32, 32, 32], 2, bytes_per_value=2)
    assert half.step_bytes - fixed == pytest.approx((two.step_bytes - fixed) / 2, rel=1e-6)


def test_gradient_checkpointing_is_seen_to_save_memory() -> None:
    pytest.importorskip("einops")
    swin = {"_target_": "monai.networks.nets.SwinUNETR", **IO, "feature_size": 12}
    whole, saving = (
        cost_of({**swin, "use_checkpoint": way}, [64, 64, 64], 1) for way in (False, True)
    )
    assert saving.step_bytes < 0.8 * whole.step_bytes
    assert saving.multiply_adds == whole.multiply_adds


@pytest.mark.slow  # starts a process that imports torch and MONAI
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_near_what_a_step_takes() -> None:
    # 16 channels: of fewer, oneDNN makes 16 for itself, which the estimate does not count
    words_of_model = ["model=resunet", "model.width=16", "model.max_levels=3"]
    size = (48, 48, 48)
    model = model_of(*words_of_model, "model.deep_supervision=0", size=size)
    words = [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps([model, size])]
    measured = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert 0.5 < cost_of(model, size, 2).step_bytes / measured < 2


def advice(
    model: dict[str, Any], size: list[int], batch: int, room: int | None, accelerator: str = "cpu"
) -> str | None:
    """The advice for a network with what it is estimated to need."""
    needed = cost_of(model, size, batch).step_bytes
    return check_memory(needed, model, size, batch, room, accelerator)


def test_advice_fits_and_the_next_larger_batch_does_not() -> None:
    size, room = [64, 64, 64], 60_000_000
    line = advice(TINY, size, 8, room, "gpu")
    assert line is not None
    assert re.match(r"data\.batch_size=8: a step needs about .*, this GPU has 60 MB; give ", line)
    batch = int(re.findall(r"give data\.batch_size=(\d+)", line)[0])
    patch = json.loads(re.findall(r"data\.spatial_size=(\[.+\])", line)[0])
    share = memory_advice.SHARE * room
    assert cost_of(TINY, size, batch).step_bytes <= share
    assert cost_of(TINY, size, batch + 1).step_bytes > share
    assert cost_of(TINY, patch, 8).step_bytes <= share
    assert all(voxels % 16 == 0 for voxels in patch)


def test_a_planned_network_is_planned_anew_for_the_advised_patch() -> None:
    model = {**model_of("model=resunet", "model.width=4", size=(64, 64, 64))}
    line = advice(model, [64, 64, 64], 1, cost_of(model, [64, 64, 64], 1).step_bytes // 2)
    assert line is not None
    assert re.search(r"this machine has .*; give data\.spatial_size=\[48,48,48\]$", line)


def test_computing_again_is_advised_where_it_alone_makes_a_step_fit() -> None:
    model = {**model_of("model=resunet", "model.width=4", size=(64, 64, 64))}
    whole, less = (
        cost_of({**model, "use_checkpoint": again}, [64, 64, 64], 1).step_bytes
        for again in (False, True)
    )
    assert less < 0.8 * whole
    room = int(less / memory_advice.SHARE) + 1
    line = advice(model, [64, 64, 64], 1, room)
    assert line is not None and line.endswith(" or model.use_checkpoint=true")
    again = advice({**model, "use_checkpoint": True}, [64, 64, 64], 1, less - 1)
    assert again is not None and "use_checkpoint" not in again


def test_what_fits_or_is_not_known_needs_no_advice() -> None:
    assert advice(TINY, [32, 32, 32], 1, 10**9) is None
    assert advice(TINY, [32, 32, 32], 1, None) is None


def test_where_nothing_fits_a_smaller_network_is_advised() -> None:
    line = advice(TINY, [32, 32, 32], 1, 1000)
    assert line is not None and line.endswith("give a smaller network")


def test_the_memory_of_this_machine_is_found_within_its_container(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = available_memory("cpu")
    assert whole is None or whole > 10**8
    limit = tmp_path / "memory.max"
    limit.write_text("50000000\n")
    monkeypatch.setattr(parallel, "CGROUP_ROOT", tmp_path)
    assert available_memory("cpu") == 50_000_000
    limit.write_text("max\n")
    assert (available_memory("cpu") or 0) > 50_000_000


def rows() -> list[list[str]]:
    """Cells of the page's table, the words of the choice first."""
    lines = re.findall(r"^\| `model=.*\|$", PAGE.read_text(), flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_table_of_the_page_says_what_is_counted(row: list[str]) -> None:
    size = (128, 128, 64)
    cost = cost_of(model_of(*row[0].strip("`").split(), size=size), size, 2)
    assert ", ".join(row[-3:]) == re.sub(
        " (parameters|multiply-adds a patch|a step)", "", describe(cost)
    )


def test_the_page_names_every_choice() -> None:
    assert set(re.findall(r"model=([a-z]+)", PAGE.read_text())) == set(options("model"))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_table_of_the_page_says_which_patches_are_taken(row: list[str]) -> None:
    rules = re.findall(r"(\d+) from (\d+)", row[2])
    assert rules

    def check(size: int) -> None:
        patch = (128, 128, size)
        check_spatial_size(model_of(*row[0].strip("`").split(), size=patch), patch)

    for step, least in ((int(step), int(least)) for step, least in rules):
        check(least)
        check(least + step)
        with pytest.raises(PancsegError, match=f"axis 2 is .* multiples of {step} from"):
            check(least + step // 2)
