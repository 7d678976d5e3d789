"""``python -m pancseg.phantom``: synthetic abdominal CT with a pancreas, as DICOM."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import PancsegError

log = logging.getLogger(__name__)


def phantom(cfg: DictConfig) -> None:
    """Write phantoms."""
    from pancseg.parallel import progress
    from pancseg.phantoms.patient import simulate_patient, write_patient

    if OmegaConf.is_missing(cfg, "out"):
        raise PancsegError("out is not given; give a folder, such as out=data/phantoms")
    if cfg.patients < 1 or min(cfg.shape) < 2 or min(cfg.spacing_mm) <= 0:
        raise PancsegError(
            f"patients={cfg.patients} shape={list(cfg.shape)} spacing_mm={list(cfg.spacing_mm)}: "
            "expected at least 1 patient, 2 voxels along each axis and spacings above 0"
        )
    out = Path(cfg.out)
    for index in progress(range(cfg.patients), "phantoms", "patient"):
        patient = simulate_patient(cfg.seed, index, tuple(cfg.shape), tuple(cfg.spacing_mm))
        write_patient(patient, out)
    log.info("%s: %d phantoms of %s voxels", out, cfg.patients, " x ".join(map(str, cfg.shape)))


main = command(phantom)

if __name__ == "__main__":
    main()
