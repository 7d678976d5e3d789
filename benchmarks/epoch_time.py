"""How long are the recipe's 600 epochs, and how near is a step to what the machine can do?

    python benchmarks/time_to_dice.py --work FOLDER --arms a,c --budgets 60,180
    python benchmarks/epoch_time.py --work FOLDER

Steps a second are those between the two longest budgets of an arm, so that starting and caching do
not count. They are extrapolated to the recipe's 257 groups and 600 epochs. What the machine can do
is measured here: a large matrix product, and a copy of a large array. A step's arithmetic is
counted (forward pass, and twice as much backward), and its traffic as the bytes that every
operation reads and writes, as if no two were fused and no cache held anything: more than 100 % of
the copy's speed means that caches do. What is left of both is the gap: memory where traffic is near
its ceiling; starting of small operations, Python and logging where neither is.
"""

import argparse
import datetime
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dice_over_time import ARMS, machine, read_results
from monai.losses import DiceLoss
from plain_recipe import CHANNELS, SIZE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pancseg.models.factory import build_on_meta
from pancseg.models.network_checks import count_multiply_adds

GROUPS, EPOCHS, BATCH = 257, 600, 2  # the recipe's
MODEL = {
    "_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
    "channels": list(CHANNELS), "strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch",
}  # fmt: skip
ROUNDS = 5


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        written = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        if not function.is_view:
            self.bytes += sum(one.numel() * one.element_size() for one in (*read, *written))
        return out


def traffic_of_step() -> int:
    """Bytes that a step of the recipe's network moves, float32."""
    network = build_on_meta(MODEL)
    loss = DiceLoss(to_onehot_y=True, sigmoid=True, squared_pred=True)
    image = torch.empty(BATCH, 1, *SIZE, device="meta")
    label = torch.zeros_like(image)
    with Traffic() as traffic:
        loss(network(image), label).backward()
    return traffic.bytes


def steps_per_second(results: list[dict[str, Any]], arm: str) -> float | None:
    """Between the two longest budgets of an arm; None where there are not two.

    >>> rows = [{"arm": "a", "budget_s": s, "wall_s": s, "steps": s // 2} for s in (60, 90)]
    >>> steps_per_second(rows, "a")
    0.5
    """
    rows = sorted((row for row in results if row["arm"] == arm), key=lambda row: row["budget_s"])
    if len(rows) < 2:
        return None
    one, other = rows[-2:]
    return float((other["steps"] - one["steps"]) / (other["wall_s"] - one["wall_s"]))


def fastest_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several rounds, after one that warms up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def ceilings() -> dict[str, float]:
    """FLOP/s of a matrix product in float32 and bf16, and bytes a second of a copy."""
    gpu = torch.cuda.is_available()
    device, side = ("cuda", 8192) if gpu else ("cpu", 2048)
    found = {}
    for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(side, side, device=device).to(kind)
        found[name] = 2 * side**3 / fastest_s(lambda matrix=matrix: matrix @ matrix)
    array = torch.ones(2**30 if gpu else 2**27, device=device)
    target = torch.empty_like(array)
    found["copy"] = 2 * array.numel() * 4 / fastest_s(lambda: target.copy_(array))
    return found


def table(rates: dict[str, float], limits: dict[str, float]) -> str:
    """Markdown: epochs of each arm, and its step beside the machine's ceilings."""
    flop = 6 * BATCH * count_multiply_adds(build_on_meta(MODEL), SIZE)
    moved = traffic_of_step()
    lines = [
        "| arm | steps/s | epoch of 257 groups s | 600 epochs h | times (a) | TFLOP/s | "
        "of float32 ceiling | of bf16 ceiling | GB/s moved, float32 | of copy |",
        "|--|--|--|--|--|--|--|--|--|--|",
    ]
    for arm, rate in rates.items():
        epoch_s = math.ceil(GROUPS / BATCH) / rate
        cells = [
            ARMS[arm].label, f"{rate:.3g}", f"{epoch_s:.3g}", f"{epoch_s * EPOCHS / 3600:.3g}",
            f"{rate / rates['a']:.2f}" if "a" in rates else "", f"{flop * rate / 1e12:.3g}",
            *(f"{flop * rate / limits[name]:.0%}" for name in ("float32", "bf16")),
            f"{moved * rate / 1e9:.3g}", f"{moved * rate / limits['copy']:.0%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table of a folder of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="of time_to_dice.py")
    work = parser.parse_args().work
    results = read_results(work)
    rates = {arm: rate for arm in "ac" if (rate := steps_per_second(results, arm))}
    if not rates:
        raise SystemExit(f"{work}: needs results of arm a or c for two budgets")
    limits = ceilings()
    print(f"{machine()}, {datetime.date.today()}.")
    product, bf16 = (f"{limits[name] / 1e12:.3g} TFLOP/s" for name in ("float32", "bf16"))
    copied = f"{limits['copy'] / 1e9:.3g} GB/s"
    print(f"Matrix product {product} in float32, {bf16} in bf16; copy {copied}.\n")
    print(table(rates, limits))


if __name__ == "__main__":
    main()
