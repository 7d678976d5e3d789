"""The model card, in Markdown. It holds numbers of patients, never their names, and no path."""

from dataclasses import asdict
from html import escape
from typing import Any

import torch

from pancseg import __version__
from pancseg.errors import PancsegError
from pancseg.exporting.patch_network import PatchNetwork
from pancseg.inference.checkpoint import run_folder_of
from pancseg.models.factory import count_parameters
from pancseg.reports.page import banners_of
from pancseg.reports.run_folder import Run
from pancseg.reports.tables import headline

NO_SCORES = "There are no scores of test patients for this checkpoint and these masks."
CARD = """\
# {title} on CT

> **NOT FOR CLINICAL USE** For research only.
{banners}
## Network

{network}

## Scores

{scores}

## Limits

- Not a medical device; nothing here was made or tested for diagnosis or treatment.
- It segments the {name} on CT in Hounsfield units, and does not notice other images.
- It knows the scanners, contrast phases, ages and diseases of its training patients. Expect lower
  scores on scans from elsewhere, and measure them first.

## Use

{use}
"""
USE = {
    "bundle": """\
    pip install "monai[fire,ignite,nibabel,skimage]>=1.5.1"
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS

in this folder; `SCANS` is a folder of NIfTI files. Masks are written to `eval`, on the grids of the
scans. A bundle is a program: run only bundles from people you trust.""",
    "onnx": """\
    import onnxruntime

    session = onnxruntime.InferenceSession("FOLDER/model.onnx")
    logits = session.run(["logits"], {"image": windows})[0]

`processing.json` holds the steps from a scan to windows and from logits to a mask, as transforms of
MONAI. Without them the logits mean nothing.""",
}


def read_run(net: PatchNetwork) -> tuple[dict[str, Any], dict[str, Any]]:
    """``summary.json`` and ``scores/test.json``; empty if missing or of another network or mask."""
    trained, folder = net.trained, run_folder_of(net.trained.path)
    run = Run(folder, [folder])
    summary = next(iter(run.summaries), {})
    try:
        figures = run.figures("test")
    except PancsegError:  # not scored
        figures = {}
    own = {
        "checkpoint": [trained.path.name],
        "checkpoint_epoch": [trained.epoch],
        "data_fingerprint": trained.fingerprint,
        "postprocess": [asdict(net.postprocess)],
    }
    is_summary = summary.get("data_fingerprint") == trained.fingerprint
    return summary if is_summary else {}, figures if own.items() <= figures.items() else {}


def model_card(
    net: PatchNetwork, summary: dict[str, Any], figures: dict[str, Any], kind: str
) -> str:
    """The card of a ``bundle`` or ``onnx``, with what :func:`read_run` gives."""
    trained, numbers, split = net.trained, net.trained.preprocessing, net.trained.split
    phantoms = summary.get("phantoms", figures.get("phantoms"))
    held_out = figures.get("held_out", split.held_out)
    data = {"True": "phantoms", "False": "CT of patients"}.get(str(phantoms), "not known")
    size, spacing, window = (
        ", ".join(f"{value:g}" for value in values)
        for values in (net.window, numbers.spacing_mm, numbers.window_hu)
    )
    facts = {
        "network": f"{net.definition['_target_']}, {count_parameters(net.network):,} parameters",
        "input": f"{size} voxels of {spacing} mm, {numbers.orientation}; {window} HU are 0 and 1",
        "output": f"logits of background and {net.structure}, {net.activation}",
        "mask": net.postprocess.describe(),
        "data": f"{data}, fingerprint {trained.fingerprint}",
        "patients": f"{len(split.train)} training, {len(split.val)} validation, {len(split.test)} "
        f"test ({split.rule}), {len(trained.seen_before)} of the initial weights",
        "training": f"{trained.epoch} epochs, {trained.hparams['loss']['_target_']}",
        "trained by": ", ".join(f"{k} {v}" for k, v in summary.get("versions", {}).items()),
        "exported by": f"pancseg {__version__}, torch {torch.__version__}",
    }
    return CARD.format(
        title=net.structure.capitalize(),
        name=net.structure,
        banners="".join(
            f">\n> **{title}** {text}\n" for title, text in banners_of(bool(phantoms), held_out)
        ),
        network=table(facts),
        scores=escape(f"{headline(figures)}; {figures['geometry']}.") if figures else NO_SCORES,
        use=USE[kind],
    )


def table(rows: dict[str, Any]) -> str:
    """A table of two columns, without HTML."""
    texts = {key: " ".join(escape(str(v)).replace("|", "/").split()) for key, v in rows.items()}
    return "\n".join(["| | |", "|--|--|", *(f"| {key} | {text} |" for key, text in texts.items())])
