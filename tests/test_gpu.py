"""Training on a GPU, without one: fake CUDA tensors at full size, compiled graphs, settings."""

import ctypes
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

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
from pancseg.training import setup
from tests.conftest import compose, smoke

SOURCE = Path(__file__).parent / "fake_cuda_guard.cpp"
STRONG, RECIPE = Plan((1.5, 1.5, 1.5), (128, 128, 96)), Plan((1.5, 1.5, 1.0), (128, 128, 64))


@pytest.fixture(scope="session")
def cuda_guard(tmp_path_factory):
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

    def __torch_function__(self, function, types, args, kwargs=None):
        given = tree_leaves((args, kwargs or {}))
        if any(isinstance(value, FakeTensor) or str(value).startswith("cuda") for value in given):
            return function(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return function(*args, **(kwargs or {}))


@contextmanager
def fake_gpu():
    """Tensors on ``cuda`` without values, under bf16 autocast; reading one on the host raises."""
    host_generator = torch.Generator
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(augmentation.torch, "Generator", lambda *_: host_generator())
        ones = lambda size, device, **_: torch.ones(size, device=device)  # noqa: E731
        patch.setattr(inferers, "compute_importance_map", ones)  # MONAI's reads a value
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(HostTensors())
        stack.enter_context(torch.autocast("cuda", torch.bfloat16))
        yield


def data_of(cfg, plan=STRONG, batches=250):
    """A substitute for the data module."""
    data = SimpleNamespace(plan=plan, sampling=Sampling(**cfg.sampling))
    data.structures, data.has_ignored = {"pancreas": [1]}, False
    data.batches_per_epoch = lambda: batches
    return data


def segmenter_of(cfg, plan=STRONG):
    """The network as a training prepares it, on the CPU."""
    cfg.hardware.compile = False
    segmenter = setup.build_segmenter(cfg, data_of(cfg, plan))
    segmenter.log_dict = lambda *_, **__: None
    segmenter._trainer = SimpleNamespace(global_step=1, log_every_n_steps=10, global_rank=0)
    return segmenter


def move_to_fake_gpu(segmenter):
    """Put fake tensors in the place of all that a module and its metrics hold."""

    def fake(tensor):
        return None if tensor is None else torch.empty_like(tensor, device="cuda")

    for module in segmenter.modules():
        for name, tensor in module._parameters.items():
            module._parameters[name] = None if tensor is None else nn.Parameter(fake(tensor))
        for name, tensor in module._buffers.items():
            module._buffers[name] = fake(tensor)
        if isinstance(module, Metric):
            module._device = torch.device("cuda")
            for name, default in module._defaults.items():
                if isinstance(default, Tensor):
                    setattr(module, name, fake(default))


@pytest.mark.usefixtures("cuda_guard")
@pytest.mark.parametrize(
    ("experiment", "augment", "plan"), [("strong", "full", STRONG), ("recipe64", "light", RECIPE)]
)
def test_a_step_of_full_size_stays_on_the_gpu(experiment, augment, plan):
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


DECISIONS = [
    # seconds of a step: 0.02 of recipe64; 6 * 358e9 multiply-adds * 5 / 5e13 = 0.21 of strong
    ("recipe64", True),  # 600 * 128 * 0.02 = 1,536 s
    ("recipe64 trainer.max_epochs=300", False),
    ("strong trainer.max_epochs=30", True),  # 30 * 250 * 0.21 = 1,600 s
    ("strong trainer.max_steps=1000", False), ("strong trainer.max_time=00:00:19:59", False),
    ("strong trainer.max_epochs=-1", True), ("strong trainer.fast_dev_run=true", False),
    ("strong hardware.compile=false", False), ("strong hardware=cpu", False),
    ("strong hardware=cpu hardware.compile=true", True),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), DECISIONS)
def test_a_network_is_compiled_where_training_takes_twenty_minutes(monkeypatch, words, expected):
    cfg = compose("train", "hardware=rtx4090", *f"experiment={words}".split())
    data = data_of(cfg, STRONG, 250) if words.startswith("strong") else data_of(cfg, RECIPE, 128)
    monkeypatch.setattr(setup.hardware, "can_compile", lambda: True)
    assert setup.is_compiled(cfg, data) is expected
    monkeypatch.setattr(setup.hardware, "can_compile", lambda: False)
    assert setup.is_compiled(cfg, data) is bool(cfg.hardware.compile)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's
@pytest.mark.parametrize("words", [[], ["experiment=strong", "data.patch_voxels=40000"]])
def test_only_the_network_is_compiled(prepared, tmp_path, command, monkeypatch, words):
    modes, compile_module = [], nn.Module.compile

    def without_code(module, mode, **options):
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
def test_the_precision_of_a_cpu_is_what_it_has_units_for(monkeypatch, units, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if units:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    machine = hardware.detect.__wrapped__()
    assert (machine.accelerator, machine.precision, machine.num_workers) == ("cpu", precision, 0)


@pytest.mark.parametrize(
    ("gigabytes", "patch_voxels", "batch_size"),  # voxels: (0.6 * memory - 1.5e9) / 1600
    [(2, 133_333, 2), (6, 400_000, 3), (24, 1_600_000, 5), (141, 4_000_000, 8)],
)
def test_patches_and_precision_suit_the_gpu(monkeypatch, gigabytes, patch_voxels, batch_size):
    card = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for bf16, precision in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, bf16=bf16: bf16)
        machine = hardware.detect.__wrapped__()
        assert (machine.patch_voxels, machine.batch_size) == (patch_voxels, batch_size)
        assert (machine.cache, machine.precision) == ("gpu", precision)


@pytest.mark.parametrize(("devices", "device"), [(1, "cuda:0"), ([1], "cuda:1")])
def test_the_configured_gpu_has_autotuning_and_a_rate_for_its_width(monkeypatch, devices, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cfg = compose("train", "hardware=rtx4090", "experiment=strong", f"hardware.devices={devices}")
    settings = hardware.device_settings(cfg.hardware)
    assert settings == {"device": device, "precision": "bf16-mixed"}
    assert torch.backends.cudnn.benchmark and cfg.trainer.benchmark
    assert (cfg.trainer.devices, cfg.optimizer.lr) == (devices, pytest.approx(2e-3))
    on_cpu = compose("train", "hardware=cpu", "experiment=strong")
    assert on_cpu.optimizer.lr == pytest.approx(8e-3)


UNUSABLE = [
    (580, None, "/cu130"),
    (550, "13.0", "/cu126"),
    (580, "13.0", "check CUDA_VISIBLE_DEVICES and the GPUs of the container"),
    (0, None, "nvidia-smi does not answer; install NVIDIA's driver again"),
    (470, None, "driver 470 is too old for torch; install 525 or later"),
    (None, None, ""),
]


@pytest.mark.parametrize(("driver", "cuda", "advice"), UNUSABLE)
def test_a_gpu_that_torch_cannot_use_is_reported_with_advice(monkeypatch, driver, cuda, advice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "driver_version", lambda: driver)
    assert hardware.detect.__wrapped__().advice.endswith(advice)
    with pytest.raises(PancsegError, match=r"torch finds no GPU; (a GPU|this machine shows none)"):
        hardware.check_accelerator("gpu")


ERRORS = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
    (RuntimeError("GET was unable to find an engine to execute this computation"), True),
    (torch.AcceleratorError("CUDA error: out of memory", 2), True),
    (MemoryError(), True),
    (RuntimeError("shapes differ"), False),
    (KeyError("CUDA out of memory"), False),
]


@pytest.mark.parametrize(("error", "is_memory"), ERRORS)
def test_out_of_memory_is_recognised_in_each_form(error, is_memory):
    wrapped = RuntimeError("MONAI: cannot compute the importance map")
    wrapped.__cause__ = error
    assert hardware.is_out_of_memory(error) is hardware.is_out_of_memory(wrapped) is is_memory
