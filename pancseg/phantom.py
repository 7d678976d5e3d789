"""``python -m pancseg.phantom``: synthetic abdominal CT with a pancreas, as DICOM."""

import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError

log = logging.getLogger(__name__)


def phantom(cfg: DictConfig) -> None:
    """Write phantoms."""
    from pancseg.parallel import cores, process_map, progress
    from pancseg.phantoms.patient import write_phantom

    if OmegaConf.is_missing(cfg, "out"):
        raise PancsegError("out is not given; give a folder, such as out=data/phantoms")
    if cfg.patients < 1 or min(cfg.shape) < 2 or min(cfg.spacing_mm) <= 0:
        raise PancsegError(
            f"patients={cfg.patients} shape={list(cfg.shape)} spacing_mm={list(cfg.spacing_mm)}: "
            "expected at least 1 patient, 2 voxels along each axis and spacings above 0"
        )
    out = Path(cfg.out)
    shape, spacing_mm = tuple(cfg.shape), tuple(cfg.spacing_mm)
    write = partial(write_phantom, out, cfg.seed, shape, spacing_mm, cfg.lesions)
    processes = min(cores(), cfg.patients // 8)  # starting processes takes longer than few phantoms
    done = process_map(write, range(cfg.patients), processes, crashed)
    for _ in progress(done, "phantoms", "patient", cfg.patients):
        pass
    log.info("%s: %d phantoms of %s voxels", out, cfg.patients, " x ".join(map(str, cfg.shape)))


def crashed(index: int) -> None:
    """Report a phantom whose process died."""
    raise Incomplete(f"phantom {index}: its process was killed; give more memory or fewer voxels")


main = command(phantom)

if __name__ == "__main__":
    main()
