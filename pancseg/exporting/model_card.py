"""The model card, in Markdown. It holds numbers of patients, never their names, and no path."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pancseg import __version__
from pancseg.errors import PancsegError
from pancseg.exporting.patch_network import PatchNetwork
from pancseg.inference.checkpoint import run_folder_of
from pancseg.models.factory import count_parameters
from pancseg.reports.page import banners_of, render
from pancseg.reports.run_folder import Run
from pancseg.reports.tables import headline

Values = dict[str, Any]


def read_run(net: PatchNetwork) -> tuple[Values, Values]:
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


def model_card(net: PatchNetwork, summary: Values, figures: Values, form: str) -> str:
    """The card of a ``bundle`` or ``onnx``, with what :func:`read_run` gives."""
    trained, numbers, split = net.trained, net.trained.preprocessing, net.trained.split
    phantoms = summary.get("phantoms", figures.get("phantoms"))
    held_out = figures.get("held_out", split.held_out)
    data = {"True": "phantoms", "False": "CT of patients"}.get(str(phantoms), "not known")
    lists = net.patch_size, numbers.spacing_mm, numbers.window_hu
    size, spacing, window = (", ".join(f"{value:g}" for value in values) for values in lists)
    target = net.definition.get("backbone", net.definition["network_def"])["_target_"]
    facts = {
        "network": f"{target}, {count_parameters(net.network):,} parameters",
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
    facts = {key: " ".join(str(text).replace("|", "/").split()) for key, text in facts.items()}
    scores = f"{headline(figures)}; {figures['geometry']}." if figures else ""
    banners = banners_of(bool(phantoms), held_out)
    content = {"name": net.structure, "form": form, "banners": banners, "scores": scores}
    return render(Path(__file__).with_name("model_card.md"), facts=facts, **content)
