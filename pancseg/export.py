"""``python -m pancseg.export``: a trained network, or prepared cases, for other programs."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import PancsegError

log = logging.getLogger(__name__)
PACKAGES = {  # that a format needs
    "bundle": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "nnunet": (),
}


def export(cfg: DictConfig) -> None:
    """Write a network as a MONAI bundle or as ONNX, with its model card; or cases for nnU-Net."""
    check_options(cfg)
    if cfg.format == "nnunet":
        from pancseg.exporting.nnunet import write_nnunet

        split: Any = OmegaConf.to_container(cfg.split, resolve=True)
        write_nnunet(Path(cfg.data.root), split, Path(cfg.output))
        return
    from pancseg.exporting.bundle import write_bundle
    from pancseg.exporting.model_card import model_card, read_run
    from pancseg.exporting.onnx_model import write_onnx
    from pancseg.exporting.patch_network import open_patch_network
    from pancseg.files import check_writable, replaced, write_text

    output, is_onnx = Path(cfg.output), cfg.format == "onnx"
    check_writable(output.resolve().parent, "output")
    net = open_patch_network(cfg.checkpoint)
    summary, figures = read_run(net)
    with replaced(output, folder=True) as folder:
        exported = write_onnx(net, folder) if is_onnx else write_bundle(net, folder, figures)
        if not (difference := net.difference(exported)) <= cfg.tolerance:
            raise PancsegError(
                f"a logit of the export differs from the checkpoint's by {difference:.3g}, "
                f"expected at most {cfg.tolerance:g}; nothing was written"
            )
        card = folder / ("README.md" if is_onnx else "docs/README.md")
        write_text(card, model_card(net, summary, figures, cfg.format))
    log.info("logits of a random window differ by at most %.3g", difference)
    log.info("masks: %s", net.postprocess.describe())
    log.info("%s", output)


def check_options(cfg: DictConfig) -> None:
    """Refuse an option that is missing or impossible, and an output folder that is not empty."""
    if cfg.format not in PACKAGES:
        raise PancsegError(f"format={cfg.format}: expected one of {', '.join(PACKAGES)}")
    needed, other = "checkpoint", "data.root"
    if cfg.format == "nnunet":
        needed, other = other, needed
    for key in (needed, "output"):
        if OmegaConf.select(cfg, key) is None:
            raise PancsegError(f"{key} is not given; give a path")
    if OmegaConf.select(cfg, other) is not None:
        raise PancsegError(f"{other}: format={cfg.format} takes none; it needs {needed}")
    if missing := [name for name in PACKAGES[cfg.format] if find_spec(name) is None]:
        raise PancsegError(
            f"format=onnx: needs {', '.join(missing)}, not installed; pip install pancseg[export]"
        )
    output = Path(cfg.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise PancsegError(f"output={output}: exists already; expected a new or an empty folder")


main = command(export)

if __name__ == "__main__":
    main()
