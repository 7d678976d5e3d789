"""The model card: what a network is, what it learnt from, how good it is, how it is run.

Numbers of patients stand in it, never their names; nor does any place of data.
"""

import platform
from importlib.metadata import version
from typing import Any

import torch

from pancseg import __version__
from pancseg.exporting.exportable import Exportable
from pancseg.exporting.scored import RunFacts
from pancseg.models.factory import count_parameters
from pancseg.output.page import banners_of
from pancseg.output.score_table import headline
from pancseg.output.score_words import shown, title_of_column

QUOTED = ("dice", "hd95_mm", "nsd_2mm")
LIMITS = """\
- Not a medical device: no part of it was made or tested for diagnosis or treatment.
- It finds one structure, the pancreas, on CT in Hounsfield units; on anything else its masks mean
  nothing. It does not notice that a scan is none of an abdomen.
- It knows scanners, contrast phases, ages and diseases of the patients above and no others. Figures
  are of those patients; on scans from elsewhere expect less, and measure it before you use it.
- Probabilities are not calibrated on patients.
- Scans whose voxels are much larger than those above are answered, and answered badly."""
BUNDLE = """\
    pip install "monai>=1.5.1" "torch>={torch}" nibabel scipy fire
    python -m monai.bundle run --config_file FOLDER/configs/inference.json \\
      --dataset_dir SCANS --output_dir MASKS

`SCANS` is a folder of NIfTI files, at any depth, or one file; each mask is uint8, on its scan's own
grid and in its order of axes. pancseg is not needed. `scripts/whole_scan.py` turns the scan, cuts
it into groups where the network was trained on groups, and brings the probability back to the grid;
all numbers stand in `configs/inference.json`. A bundle runs what it holds: run none whose origin
you do not trust."""
ONNX = """\
    import onnxruntime

    session = onnxruntime.InferenceSession("FOLDER/model.onnx")
    logits = session.run(["logits"], {{"image": windows}})[0]

`windows` are float32 `(B, 1, {size})`, logits `(B, 2, {size})`. `processing.json` says what
is done to a scan before it and to logits after it, step by step; without these steps the network
answers nonsense. In short: {groups}orientation {orientation}, voxels of {spacing} mm, {low:g} to
{high:g} HU to 0..1, the box around the body{resize}, windows with an overlap of
{overlap:g} weighted by a Gaussian, {activation}, back to the scan's grid, {mask}."""


def model_card(net: Exportable, facts: RunFacts, kind: str) -> str:
    """The card, Markdown.

    Args:
        net: What is exported.
        facts: Of its run.
        kind: ``bundle`` or ``onnx``.
    """
    held_out = facts.figures.get("held_out", net.trained.split.held_out)
    warned = [("NOT FOR CLINICAL USE", "For research alone.")]
    warned += banners_of(bool(facts.phantoms), held_out)
    banners = "\n>\n".join(f"> **{title}** {words}" for title, words in warned)
    parts = {
        "What it is": table(identity(net)),
        "Trained on": table(training(net, facts)),
        "Scores": scores(facts),
        "Limits": LIMITS,
        "How to run it": running(net, kind),
        "Versions": table(versions(facts)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    return f"# Pancreas on CT\n\n{banners}\n\n{body}\n"


def identity(net: Exportable) -> list[tuple[str, str]]:
    """The network and what it is given."""
    numbers, depth = net.trained.preprocessing, net.trained.depth
    low, high = numbers.window_hu
    given = f"groups of {depth} slices, resized" if depth else "whole scans, resized"
    return [
        ("network", f"`{net.model['_target_']}`, {count_parameters(net.network):,} parameters"),
        ("is given", "patches" if numbers.spatial_size is None else given),
        ("voxels of its window", by(net.window)),
        ("voxel size", f"{by(numbers.spacing_mm)} mm, {numbers.orientation}"),
        ("Hounsfield units", f"{low:g} to {high:g} become 0 to 1"),
        ("gives", f"logits of background and pancreas; {net.activation}"),
        ("mask", net.how.describe()),
    ]


def training(net: Exportable, facts: RunFacts) -> list[tuple[str, str]]:
    """The data and the training, in numbers."""
    split, loss = net.trained.split, net.trained.segmenter.hparams["loss"]
    phantoms = {True: "phantoms: synthetic scans", False: "CT of patients"}
    rows = [
        ("data", phantoms.get(facts.phantoms, "not known: no summary beside the checkpoint")),  # type: ignore[arg-type]
        ("data fingerprint", f"`{net.trained.fingerprint}`"),
        ("patients trained on", str(len(split.train))),
        ("patients it was chosen by", str(len(split.val))),
        ("patients for testing", str(len(split.test))),
        ("split", split.rule if split.seed is None else f"{split.rule}, seed {split.seed}"),
    ]
    if net.trained.seen_before:
        before = f"{len(net.trained.seen_before)} patients were seen by the weights it began with"
        rows.append(("before", before))
    rows += [("loss", f"`{loss['_target_']}`"), ("epochs", f"{net.trained.epoch} complete")]
    if facts.summary:
        rows.append(("precision", str(facts.summary["hardware"]["precision"])))
    return rows


def scores(facts: RunFacts) -> str:
    """The test scores, with who they are of."""
    figures = facts.figures
    if not figures:
        return facts.unscored
    lines = [headline(figures) + ".", "", f"{figures['geometry'].capitalize()}.", ""]
    rows = [("measure", "mean", "95 % CI"), ("--", "--", "--")]
    for name in QUOTED:
        if name in figures:
            title, digits = title_of_column(name)
            low, high = figures[name]["ci95"]
            mean, *ends = (shown(v, digits) for v in (figures[name]["mean"], low, high))
            rows.append((title, mean, " to ".join(ends)))
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def running(net: Exportable, kind: str) -> str:
    """How it is run, to be pasted."""
    if kind == "bundle":
        return BUNDLE.format(torch=".".join(torch.__version__.split(".")[:2]))
    numbers, depth = net.trained.preprocessing, net.trained.depth
    low, high = numbers.window_hu
    size = numbers.spatial_size
    return ONNX.format(
        size=", ".join(map(str, net.window)),
        orientation=numbers.orientation,
        spacing=by(numbers.spacing_mm),
        low=low,
        high=high,
        groups=f"groups of {depth} slices, each by itself: " if depth else "",
        resize=f" resized to {by(size)} voxels" if size else "",
        mask=net.how.describe(),
        overlap=net.overlap,
        activation=net.activation,
    )


def versions(facts: RunFacts) -> list[tuple[str, str]]:
    """Of the packages that exported and that trained."""
    now = {"python": platform.python_version(), "torch": torch.__version__}
    now |= {name: version(name) for name in ("monai", "numpy", "nibabel")}
    told = {"exported by": {"pancseg": __version__, **now}}
    if facts.summary:
        told["trained by"] = facts.summary["versions"]
    return [
        (who, ", ".join(f"{name} {number}" for name, number in found.items()))
        for who, found in told.items()
    ]


def table(rows: list[tuple[str, str]]) -> str:
    """A table of two columns.

    >>> print(table([("voxels", "3")]))
    | | |
    |--|--|
    | voxels | 3 |
    """
    return "\n".join(["| | |", "|--|--|", *(f"| {name} | {text} |" for name, text in rows)])


def by(numbers: Any) -> str:
    """Sizes in words.

    >>> by([1.5, 1.5, 1.0])
    '1.5 x 1.5 x 1'
    """
    return " x ".join(f"{number:g}" for number in numbers)
