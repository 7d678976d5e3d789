"""Training on a GPU, without one: fake tensors on CUDA at full size, and the compiled graphs."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
import torch
from monai.inferers import utils as inferers
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from pancseg.config import conf_folder, register_resolvers
from pancseg.data.sampling import Sampling
from pancseg.data.transforms import Plan
from pancseg.hardware import BYTES_A_VOXEL
from pancseg.models import augmentation
from pancseg.models.augmentation import Augmentation, Augmenter
from pancseg.models.segmenter import Segmenter
from pancseg.training import setup
from tests.conftest import Command, smoke

SOURCE = Path(__file__).parent / "fake_cuda_guard.cpp"
STRONG, RECIPE = Plan((1.5, 1.5, 1.5), (128, 128, 96)), Plan((1.5, 1.5, 1.0), (128, 128, 64))


@pytest.fixture(scope="session")
def cuda_guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let fake tensors be on ``cuda``; a torch that is built for CPUs needs a guard for it."""
    if torch.cuda.is_available():
        return
    if torch.version.cuda or not shutil.which("g++"):
        pytest.skip("needs a GPU, or g++ and a torch that is built for CPUs")
    library, package = tmp_path_factory.mktemp("guard") / "guard.so", Path(torch.__file__).parent
    words = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{package / 'include'}", str(SOURCE)]
    words += [f"-L{package / 'lib'}", "-lc10", "-o", str(library)]
    subprocess.run(words, check=True)
    ctypes.CDLL(str(library))


class HostTensors(TorchFunctionMode):
    """Keeps tensors real that never leave the host: their values are read."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = tree_leaves((args, kwargs or {}))
        if any(isinstance(value, FakeTensor) or str(value).startswith("cuda") for value in given):
            return function(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return function(*args, **(kwargs or {}))


def uniform_weights(size: tuple[int, ...], device: torch.device, **_: Any) -> Tensor:
    """Weights of a window's voxels."""
    return torch.ones(size, device=device)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors on ``cuda`` without values, under bf16 autocast; reading one on the host raises."""
    host_generator = torch.Generator
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(augmentation.torch, "Generator", lambda *_: host_generator())
        patch.setattr(inferers, "compute_importance_map", uniform_weights)  # MONAI's reads a value
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(HostTensors())
        stack.enter_context(torch.autocast("cuda", torch.bfloat16))
        yield


def composed(*words: str) -> DictConfig:
    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose("train", ["hardware=rtx4090", *words])


def data_of(cfg: DictConfig, plan: Plan = STRONG, batches: int = 250) -> Any:
    """Stands in for the data module."""
    return SimpleNamespace(
        plan=plan, sampling=Sampling(**cfg.sampling), batches_per_epoch=lambda: batches
    )


def segmenter_of(cfg: DictConfig, plan: Plan = STRONG) -> Segmenter:
    """The network as a training prepares it, on the CPU."""
    segmenter = setup.build_segmenter(cfg, data_of(cfg, plan))
    segmenter.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    segmenter._trainer: Any = SimpleNamespace(
        global_step=1, log_every_n_steps=10, global_rank=0, world_size=1
    )
    return segmenter


def move_to_fake_gpu(segmenter: Segmenter) -> None:
    """Put fake tensors in the place of all that a module and its metrics hold."""
    for module in segmenter.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(torch.empty_like(parameter, device="cuda"))
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cuda")
        if isinstance(module, Metric):
            module._device = torch.device("cuda")
            for name, default in module._defaults.items():
                if isinstance(default, Tensor):
                    setattr(module, name, torch.empty_like(default, device="cuda"))


@pytest.mark.usefixtures("cuda_guard")
@pytest.mark.parametrize(
    ("experiment", "augment", "plan"),
    [
        ("strong", "full", STRONG),
        ("recipe64", "light", RECIPE),
    ],
)
def test_a_step_of_full_size_stays_on_the_gpu(
    experiment: str, augment: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "is_compiled", lambda *_: False)
    cfg = composed(f"experiment={experiment}", f"augment={augment}")
    count = cfg.data.batch_size
    chances = {name: 1.0 for name in cfg.augment if name.endswith("_probability")}
    changes = Augmentation(**{**cfg.augment, **chances, "flip_probability": [1.0] * 3})
    window = {"spacing_mm": plan.spacing_mm, "window_hu": (-200, 200)}
    augmenter = Augmenter(changes, size=plan.spatial_size, **window)
    segmenter = segmenter_of(cfg, plan)
    with fake_gpu():
        move_to_fake_gpu(segmenter)
        box = torch.zeros(count, 1, *augmenter.box, device="cuda")
        image, label = augmenter(box, box, seed=0)
        patient = torch.zeros(count, dtype=torch.int64, device="cuda")
        batch = {"image": image, "label": label, "patient": patient, "step": 1, "name": []}
        assert (image.shape, image.device.type) == ((count, 1, *plan.spatial_size), "cuda")
        loss = segmenter.training_step(batch, 0)
        assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
        with torch.no_grad():
            whole = [2 * n if experiment == "strong" else n for n in plan.spatial_size]
            image = torch.zeros(1, 1, *whole, device="cuda")
            batch |= {"image": image, "label": image, "patient": patient[:1]}
            logits = segmenter.eval().validation_step(batch, 0)["logits"]
        assert (logits.shape, logits.device.type) == ((1, 2, *whole), "cuda")


@pytest.mark.usefixtures("cuda_guard")
def test_a_planned_step_keeps_three_fifths_of_the_memory_that_is_planned_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest is for gradients, workspaces and fragments, which cannot be counted here."""
    monkeypatch.setattr(setup, "is_compiled", lambda *_: False)
    cfg = composed("experiment=strong")
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    segmenter = segmenter_of(cfg)
    with fake_gpu():
        move_to_fake_gpu(segmenter)
        image = torch.zeros(cfg.data.batch_size, 1, *STRONG.spatial_size, device="cuda")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            segmenter.loss_function(segmenter.network(image).float(), image)
        weights = {p.untyped_storage()._cdata for p in segmenter.parameters()}
        sizes = (t.untyped_storage().nbytes() for key, t in saved.items() if key not in weights)
        a_voxel = sum(sizes) / image.numel()
    assert a_voxel == pytest.approx(983, rel=0.02)
    assert 0.5 * BYTES_A_VOXEL < a_voxel < 0.7 * BYTES_A_VOXEL


@pytest.mark.parametrize(
    ("words", "batches", "expected"),
    [
        # seconds of a step: 0.02 of recipe64; 6 * 358e9 multiply-adds * 5 / 5e13 = 0.21 of strong
        (["experiment=recipe64"], 128, True),  # 600 * 128 * 0.02 = 1,536 s
        (["experiment=recipe64", "trainer.max_epochs=300"], 128, False),
        (["experiment=strong"], 250, True),
        (["experiment=strong", "trainer.max_epochs=30"], 250, True),  # 30 * 250 * 0.21 = 1,600 s
        (["experiment=strong", "trainer.max_steps=1000"], 250, False),
        (["experiment=strong", "trainer.max_time=00:00:19:59"], 250, False),
        (["experiment=strong", "trainer.max_epochs=-1"], 250, True),
        (["experiment=strong", "trainer.fast_dev_run=true"], 250, False),
        (["experiment=strong", "hardware.compile=false"], 250, False),
        (["experiment=strong", "hardware=cpu"], 250, False),
        (["experiment=strong", "hardware=cpu", "hardware.compile=true"], 250, True),
    ],
)
def test_the_network_is_compiled_on_a_gpu_where_a_training_takes_twenty_minutes(
    monkeypatch: pytest.MonkeyPatch, words: list[str], batches: int, expected: bool
) -> None:
    monkeypatch.setattr(setup.hardware, "can_compile", lambda: True)
    cfg = composed(*words)
    plan = STRONG if "experiment=strong" in words else RECIPE
    assert setup.is_compiled(cfg, data_of(cfg, plan, batches)) is expected
    if cfg.hardware.compile is None:
        monkeypatch.setattr(setup.hardware, "can_compile", lambda: False)
        assert not setup.is_compiled(cfg, data_of(cfg, plan, batches))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's
@pytest.mark.parametrize("words", [[], ["experiment=strong", "data.patch_voxels=40000"]])
def test_the_network_alone_is_compiled_without_a_break(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:  # fmt: skip
    modes, compile_module = [], nn.Module.compile

    def without_code(module: nn.Module, mode: str, **options: Any) -> None:
        modes.append(mode)
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", without_code)
    torch._dynamo.reset()
    counters.clear()
    more = ["augment=full", "hardware.compile=true", "hardware.compile_mode=reduce-overhead"]
    more += ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    ended = command("train", *smoke(prepared, tmp_path / "run"), *words, *more)
    assert ended.code == 0, ended.err
    assert (modes, dict(counters["graph_break"])) == (["reduce-overhead"], {})
    assert counters["stats"]["unique_graphs"] <= 3  # training, and validation of one or two
    names = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert not [name for name in names["state_dict"] if "_orig_mod" in name]
