"""Training on a GPU, without one: fake CUDA tensors at full size, compiled graphs, settings."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.inferers import utils as inferers
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from pancseg import hardware
from pancseg.data.sampling import Sampling
from pancseg.data.transforms import Plan
from pancseg.errors import PancsegError
from pancseg.models import augmentation
from pancseg.models.augmentation import Augmentation, Augmenter
from pancseg.models.segmenter import Segmenter
from pancseg.training import setup
from tests.conftest import Command, compose, smoke

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
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{package / 'include'}", str(SOURCE)]
    command += [f"-L{package / 'lib'}", "-lc10", "-o", str(library)]
    subprocess.run(command, check=True)
    ctypes.CDLL(str(library))


class HostTensors(TorchFunctionMode):
    """Keeps tensors real that never leave the host: their values are read."""

    def __torch_function__(self, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        if any(isinstance(value, FakeTensor) or str(value).startswith("cuda") for value in given):
            return function(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return function(*args, **(kwargs or {}))


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors on ``cuda`` without values, under bf16 autocast; reading one on the host raises."""
    host_generator = torch.Generator

    def importance(size: tuple[int, ...], device: torch.device, **_: Any) -> Tensor:
        return torch.ones(size, device=device)  # MONAI's reads a value

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(augmentation.torch, "Generator", lambda *_: host_generator())
        patch.setattr(inferers, "compute_importance_map", importance)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(HostTensors())
        stack.enter_context(torch.autocast("cuda", torch.bfloat16))
        yield


def data_of(cfg: Any, plan: Plan = STRONG, batches: int = 250) -> Any:
    """A substitute for the data module."""
    sampling = Sampling(**cfg.sampling)
    return SimpleNamespace(plan=plan, sampling=sampling, batches_per_epoch=lambda: batches)


def segmenter_of(cfg: Any, plan: Plan = STRONG) -> Segmenter:
    """The network as a training prepares it, on the CPU."""
    cfg.hardware.compile = False
    segmenter: Any = setup.build_segmenter(cfg, data_of(cfg, plan))
    segmenter.log_dict = lambda *_, **__: None
    segmenter._trainer = SimpleNamespace(global_step=1, log_every_n_steps=10, global_rank=0)
    return segmenter


def move_to_fake_gpu(segmenter: Segmenter) -> None:
    """Put fake tensors in the place of all that a module and its metrics hold."""
    for module in segmenter.modules():
        for name, parameter in module._parameters.items():
            fake = None if parameter is None else torch.empty_like(parameter, device="cuda")
            module._parameters[name] = None if fake is None else nn.Parameter(fake)
        for name, buffer in module._buffers.items():
            fake = None if buffer is None else torch.empty_like(buffer, device="cuda")
            module._buffers[name] = fake
        if isinstance(module, Metric):
            module._device = torch.device("cuda")
            for name, default in module._defaults.items():
                if isinstance(default, Tensor):
                    setattr(module, name, torch.empty_like(default, device="cuda"))


@pytest.mark.usefixtures("cuda_guard")
@pytest.mark.parametrize(
    ("experiment", "augment", "plan"), [("strong", "full", STRONG), ("recipe64", "light", RECIPE)]
)
def test_a_step_of_full_size_stays_on_the_gpu(experiment: str, augment: str, plan: Plan) -> None:
    cfg = compose("train", "hardware=rtx4090", f"experiment={experiment}", f"augment={augment}")
    count, size = cfg.data.batch_size, plan.spatial_size
    chances = {name: 1.0 for name in cfg.augment if name.endswith("_probability")}
    changes = Augmentation(**{**cfg.augment, **chances, "flip_probability": (1.0,) * 3})
    view = {"spacing_mm": plan.spacing_mm, "window_hu": (-200, 200)}
    augmenter, segmenter = Augmenter(changes, size=size, **view), segmenter_of(cfg, plan)
    with fake_gpu():
        move_to_fake_gpu(segmenter)
        box = torch.zeros(count, 1, *augmenter.box, device="cuda")
        image, label = augmenter(box, box, seed=0)
        patient = torch.zeros(count, dtype=torch.int64, device="cuda")
        batch = {"image": image, "label": label, "patient": patient, "step": 1, "name": []}
        assert (image.shape, image.device.type) == ((count, 1, *size), "cuda")
        loss = segmenter.training_step(batch, 0)
        assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
        with torch.no_grad():
            whole = [2 * n if experiment == "strong" else n for n in size]
            image = torch.zeros(1, 1, *whole, device="cuda")
            batch |= {"image": image, "label": image, "patient": patient[:1]}
            logits = segmenter.eval().validation_step(batch, 0)["logits"]
        assert (logits.shape, logits.device.type) == ((1, 2, *whole), "cuda")


@pytest.mark.usefixtures("cuda_guard")
def test_a_planned_step_keeps_three_fifths_of_the_memory_that_is_planned_for_it() -> None:
    """The rest is for gradients, workspaces and fragments, which cannot be counted here."""
    cfg = compose("train", "hardware=rtx4090", "experiment=strong")
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        return saved.setdefault(tensor.untyped_storage()._cdata, tensor)

    segmenter = segmenter_of(cfg)
    with fake_gpu():
        move_to_fake_gpu(segmenter)
        image = torch.zeros(cfg.data.batch_size, 1, *STRONG.spatial_size, device="cuda")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            segmenter.loss_function(segmenter.network(image).float(), image)
        weights = {p.untyped_storage()._cdata for p in segmenter.parameters()}
        sizes = [t.untyped_storage().nbytes() for key, t in saved.items() if key not in weights]
    a_voxel = sum(sizes) / image.numel()
    assert a_voxel == pytest.approx(983, rel=0.02) and 0.5 < a_voxel / hardware.BYTES_A_VOXEL < 0.7


@pytest.mark.parametrize(
    ("words", "batches", "expected"),
    [
        # seconds of a step: 0.02 of recipe64; 6 * 358e9 multiply-adds * 5 / 5e13 = 0.21 of strong
        ("experiment=recipe64", 128, True),  # 600 * 128 * 0.02 = 1,536 s
        ("experiment=recipe64 trainer.max_epochs=300", 128, False),
        ("experiment=strong trainer.max_epochs=30", 250, True),  # 30 * 250 * 0.21 = 1,600 s
        ("experiment=strong trainer.max_steps=1000", 250, False),
        ("experiment=strong trainer.max_time=00:00:19:59", 250, False),
        ("experiment=strong trainer.max_epochs=-1", 250, True),
        ("experiment=strong trainer.fast_dev_run=true", 250, False),
        ("experiment=strong hardware.compile=false", 250, False),
        ("experiment=strong hardware=cpu", 250, False),
        ("experiment=strong hardware=cpu hardware.compile=true", 250, True),
    ],
)
def test_the_network_is_compiled_on_a_gpu_where_a_training_takes_twenty_minutes(
    monkeypatch: pytest.MonkeyPatch, words: str, batches: int, expected: bool
) -> None:
    monkeypatch.setattr(setup.hardware, "can_compile", lambda: True)
    cfg = compose("train", "hardware=rtx4090", *words.split())
    data = data_of(cfg, STRONG if "experiment=strong" in words else RECIPE, batches)
    assert setup.is_compiled(cfg, data) is expected
    monkeypatch.setattr(setup.hardware, "can_compile", lambda: False)
    assert setup.is_compiled(cfg, data) is bool(cfg.hardware.compile)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's
@pytest.mark.parametrize("words", [[], ["experiment=strong", "data.patch_voxels=40000"]])
def test_the_network_alone_is_compiled_without_a_break(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: Any, words: list[str]
) -> None:
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
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert not [name for name in best["state_dict"] if "_orig_mod" in name]


# what hardware=auto finds


@pytest.mark.parametrize(
    ("units", "precision"),  # None: before torch 2.10
    [({"avx512_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true"), (None, "32-true")],
)
def test_a_cpu_computes_in_what_it_has_units_for(
    monkeypatch: Any, units: dict[str, bool] | None, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if units:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    machine = hardware.detect.__wrapped__()
    assert (machine.accelerator, machine.precision, machine.num_workers) == ("cpu", precision, 0)


@pytest.mark.parametrize(
    ("gigabytes", "patch_voxels", "batch_size"),
    [
        (2, 133_333, 2),
        (6, 400_000, 3),  # (0.6 * 6e9 - 1.5e9) / 1600 = 1.3 million voxels
        (24, 1_600_000, 5),  # 8.1 million
        (141, 4_000_000, 8),  # 52 million would be 12
    ],
)
def test_patches_and_precision_are_what_the_gpu_takes(
    monkeypatch: Any, gigabytes: int, patch_voxels: int, batch_size: int
) -> None:
    card = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for bf16, precision in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, bf16=bf16: bf16)
        machine = hardware.detect.__wrapped__()
        assert (machine.patch_voxels, machine.batch_size) == (patch_voxels, batch_size)
        assert (machine.cache, machine.precision) == ("gpu", precision)


@pytest.mark.parametrize(("devices", "device"), [(1, "cuda:0"), ([1], "cuda:1")])
def test_the_configured_gpu_is_used_with_autotuning_and_a_rate_for_its_width(
    monkeypatch: Any, devices: Any, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cfg = compose("train", "hardware=rtx4090", "experiment=strong", f"hardware.devices={devices}")
    settings = hardware.device_settings(cfg.hardware)
    assert settings == {"device": device, "precision": "bf16-mixed"}
    assert torch.backends.cudnn.benchmark and cfg.trainer.benchmark
    assert (cfg.trainer.devices, cfg.optimizer.lr) == (devices, pytest.approx(2e-3))
    on_cpu = compose("train", "hardware=cpu", "experiment=strong")
    assert on_cpu.optimizer.lr == pytest.approx(8e-3)


@pytest.mark.parametrize(
    ("driver", "cuda", "advice"),
    [
        (580, None, "/cu130"),
        (550, "13.0", "/cu126"),
        (580, "13.0", "check CUDA_VISIBLE_DEVICES and the GPUs of the container"),
        (0, None, "nvidia-smi does not answer; install NVIDIA's driver again"),
        (470, None, "driver 470 is too old for torch; install 525 or later"),
        (None, None, ""),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_reported_with_the_line_that_mends_it(
    monkeypatch: Any, driver: int | None, cuda: str | None, advice: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "driver_version", lambda: driver)
    assert hardware.detect.__wrapped__().advice.endswith(advice)
    with pytest.raises(PancsegError, match=r"torch finds no GPU; (a GPU|this machine shows none)"):
        hardware.check_accelerator("gpu")


def test_the_pages_name_an_index_of_wheels_that_exists() -> None:
    root = Path(__file__).parent.parent
    pages = [path.read_text() for path in (root / "README.md", *(root / "docs").rglob("*.md"))]
    named = set(re.findall(re.escape(hardware.WHEEL_URL) + r"(\w+)", " ".join(pages)))
    assert named and named <= {"cpu", *(index for _, index in hardware.WHEEL_INDEXES)}


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (torch.AcceleratorError("CUDA error: out of memory", 2), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (KeyError("CUDA out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_recognised_in_each_form(error: Exception, is_memory: bool) -> None:
    wrapped = RuntimeError("MONAI: cannot compute the importance map")
    wrapped.__cause__ = error
    assert hardware.is_out_of_memory(error) is hardware.is_out_of_memory(wrapped) is is_memory
