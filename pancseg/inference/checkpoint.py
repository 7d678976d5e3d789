"""Checkpoints: which there are, and what they hold. Their authors need not be trusted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pancseg.config import BEST
from pancseg.data.scan_statistics import TrainingProfile
from pancseg.data.splits import Split
from pancseg.data.transforms import Preprocessing
from pancseg.errors import PancsegError
from pancseg.inference.nnunet_model import open_nnunet
from pancseg.inference.trained_model import TrainedModel, check_sizes, rebuild_network
from pancseg.models.pretrained import load_tensors
from pancseg.structures import Structure, structures_from_manifest

NNUNET = "checkpoint_final.pth"


def open_checkpoint(path: Path, key: str = "checkpoint") -> TrainedModel:
    """Open the checkpoint of an option ``key``; PancsegError if pancseg or nnU-Net wrote none.

    No code of the file is run, and no more memory taken than it holds.
    """
    try:
        if path.suffix == ".pth":
            return open_nnunet(path)
        content = load_tensors(path)
        hparams, data = content["hyper_parameters"], dict(content["datamodule_hyper_parameters"])
        state = content["CTDataModule"]
        names = ("orientation", "spacing_mm", "window_hu", "spatial_size")
        values: Any = (tuple(v) if isinstance(v := data[name], list) else v for name in names)
        preprocessing = Preprocessing(*values)
        check_sizes(preprocessing.spacing_mm, (hparams["view"] or {}).get("size"))
        if data["sampling"]["kind"] == "patches":
            preprocessing = replace(preprocessing, spatial_size=None)
        timer = (content.get("callbacks") or {}).get("Timer", {}).get("time_elapsed", {})
        profile = state.get("profile")
        return TrainedModel(
            path=path,
            network=rebuild_network(hparams["model"], content["state_dict"]),
            hparams=hparams,
            data=data,
            preprocessing=preprocessing,
            split=Split(**state["split"]),
            structures=trained_structures(state["structures"], hparams.get("structures")),
            names=str(state["names"]),
            epoch=int(content["epoch"]) + 1,
            step=int(content["global_step"]),
            fingerprint=str(state["fingerprint"]),
            has_average="current_model_state" in content,
            optimizer_states=content.get("optimizer_states"),
            training_seconds=float(timer.get("train", 0.0)),
            seen_before=frozenset(state.get("seen_before", ())),
            profile=TrainingProfile(**profile) if profile else None,
        )
    except PancsegError as error:
        raise PancsegError(f"{key}={path}: {error}") from error
    except Exception as error:  # a damaged or forged file raises nearly any
        is_nnunet = path.suffix == ".pth"
        author = "nnU-Net v2" if is_nnunet else "pancseg.train"
        expected = "MODEL/fold_0" if is_nnunet else "RUN/checkpoints/best.ckpt"
        raise PancsegError(
            f"{key}={path}: is no checkpoint that {author} wrote ({type(error).__name__}); "
            f"give {expected}"
        ) from error


def trained_structures(entries: Any, by_name: dict[str, Any] | None) -> tuple[Structure, ...]:
    """Structures of the data, which must be those of the network; None is a single one."""
    structures = structures_from_manifest(entries)
    values = [list(structure.values) for structure in structures]
    if values != ([[1]] if by_name is None else [*by_name.values()]):
        raise PancsegError("its network and its data have different structures")
    return structures


def checkpoint_paths(path: Path) -> list[Path]:
    """The checkpoint, or ``best.ckpt`` of a run, or of each run of a sweep in its order.

    Of nnU-Net ``checkpoint_final.pth`` of a fold, or of each fold of a model folder.
    """
    if not path.is_dir():
        return [path]
    if folds := [*path.glob(NNUNET)] or sorted(path.glob(f"fold_*/{NNUNET}")):
        return folds
    jobs = ((int(p.name) if p.name.isdecimal() else 1 << 30, p) for p in path.iterdir())
    runs = [run for _, run in sorted(jobs)]
    paths = [run / BEST for run in (path, *runs) if (run / BEST).is_file()]
    if not paths:
        raise PancsegError(
            f"checkpoint={path}: is the folder of neither a run nor a sweep; it holds no {BEST}"
        )
    return paths


def open_checkpoints(given: str | Path | Sequence[str | Path]) -> list[TrainedModel]:
    """Open a path or several: files, and the best checkpoints of runs and sweeps, each once."""
    paths = [given] if isinstance(given, str | Path) else given
    files = dict.fromkeys(file for path in paths for file in checkpoint_paths(Path(path)))
    return [open_checkpoint(file) for file in files]


def run_folder_of(path: Path) -> Path:
    """Folder of the run or sweep that a checkpoint or folder belongs to."""
    if path.is_dir():
        return path.resolve()
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder
