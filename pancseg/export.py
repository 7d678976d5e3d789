"""``python -m pancseg.export``: a trained network for those who have no pancseg."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import PancsegError

log = logging.getLogger(__name__)
FORMATS = ("bundle", "onnx")


def export(cfg: DictConfig) -> None:
    """Write one network as a MONAI bundle or as ONNX, with its model card.

    Raises:
        PancsegError: If it cannot, or what was written differs from the original; then nothing
            is left.
    """
    check_request(cfg)
    from pancseg.exporting.bundle import write_bundle
    from pancseg.exporting.exportable import open_exportable
    from pancseg.exporting.model_card import model_card
    from pancseg.exporting.onnx_model import check_installed, write_onnx
    from pancseg.exporting.scored import facts_of
    from pancseg.files import replaced_folder, write_text

    if cfg.format == "onnx":
        check_installed()
    output = Path(cfg.output)
    check_free(output)
    net = open_exportable(cfg.checkpoint)
    facts = facts_of(net)
    with replaced_folder(output) as folder:
        if cfg.format == "onnx":
            difference = write_onnx(net, folder, cfg.tolerance)
            card = folder / "README.md"
        else:
            difference = write_bundle(net, folder, cfg.tolerance, facts.figures)
            card = folder / "docs" / "README.md"
        write_text(card, model_card(net, facts, cfg.format))
    log.info("on a random window, logits differ by at most %.3g", difference)
    log.info("masks are made with %s", net.how.describe())
    log.info("%s", output)


def check_request(cfg: DictConfig) -> None:
    """Check what is asked for before anything is opened.

    Raises:
        PancsegError: If it makes no sense.
    """
    for key in ("checkpoint", "output"):
        if OmegaConf.is_missing(cfg, key):
            raise PancsegError(f"{key} is not given; give a path")
    if cfg.format not in FORMATS:
        raise PancsegError(f"format={cfg.format}: expected one of {', '.join(FORMATS)}")
    if not cfg.tolerance > 0:
        raise PancsegError(f"tolerance={cfg.tolerance}: expected a number above 0")


def check_free(output: Path) -> None:
    """Check that nothing is overwritten.

    Raises:
        PancsegError: If the output is a file or a folder that holds something, or cannot be made.
    """
    from pancseg.files import check_writable

    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        held = "holds something" if output.is_dir() else "is a file"
        raise PancsegError(f"output={output}: {held} already; give a folder that is not there yet")
    check_writable(output.resolve().parent, "output")


main = command(export)

if __name__ == "__main__":
    main()
