"""Training on a GPU, without one: tensors without values, compiled graphs, settings."""

import resource
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from monai.inferers import utils as inferers
from torch import nn
from torch._dynamo.utils import counters

from pancseg import hardware
from pancseg.data.sampling import Sampling
from pancseg.data.transforms import Plan
from pancseg.errors import PancsegError
from pancseg.models import augmentation
from pancseg.models.augmentation import Augmentation, Augmenter
from pancseg.training import setup
from tests.conftest import compose, smoke

STRONG, RECIPE = Plan((1.5, 1.5, 1.5), (128, 128, 96)), Plan((1.5, 1.5, 1.0), (128, 128, 64))


def data_of(cfg, plan, batches=250):
    """A substitute for the data module."""
    data = SimpleNamespace(plan=plan, sampling=Sampling(**cfg.sampling))
    data.structures, data.has_ignored = {"pancreas": [1]}, False
    data.batches_per_epoch = lambda: batches
    return data


@pytest.mark.parametrize(
    ("experiment", "augment", "plan"), [("strong", "full", STRONG), ("recipe64", "light", RECIPE)]
)
def test_a_step_of_full_size_stays_on_its_device(monkeypatch, experiment, augment, plan):
    """On ``meta`` reading a value on the host raises, and most operations refuse CPU tensors."""
    cfg = compose("train", "hardware=rtx4090", f"experiment={experiment}", f"augment={augment}")
    cfg.hardware.compile = False
    count, size, generator = cfg.data.batch_size, plan.spatial_size, torch.Generator()
    chances = {name: 1.0 for name in cfg.augment if name.endswith("_probability")}
    changes = Augmentation(**{**cfg.augment, **chances, "flip_probability": (1.0,) * 3})
    augmenter = Augmenter(changes, size=size, spacing_mm=plan.spacing_mm, window_hu=(-200, 200))
    segmenter = setup.build_segmenter(cfg, data_of(cfg, plan)).to("meta")
    segmenter.log_dict = lambda *_, **__: None
    segmenter._trainer = SimpleNamespace(global_step=1, log_every_n_steps=10, global_rank=0)
    # torch has no generators and no autocast there, and MONAI reads a value of its window's weights
    monkeypatch.setattr(augmentation.torch, "Generator", lambda *_: generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    ones = lambda size, device, **_: torch.ones(size, device=device)  # noqa: E731
    monkeypatch.setattr(inferers, "compute_importance_map", ones)
    box = torch.zeros(count, 1, *augmenter.box, device="meta")
    image, label = augmenter(box, box, seed=0)
    assert (image.shape, image.device.type) == ((count, 1, *size), "meta")
    patient = torch.zeros(count, dtype=torch.int64, device="meta")
    batch = {"image": image, "label": label, "patient": patient, "batch_number": 1, "name": []}
    assert segmenter.training_step(batch, 0).device.type == "meta"
    whole = [2 * n if experiment == "strong" else n for n in size]
    image = torch.zeros(1, 1, *whole, device="meta")
    batch |= {"image": image, "label": image, "patient": patient[:1]}
    with torch.no_grad():
        logits = segmenter.eval().validation_step(batch, 0)["logits"]
    assert (logits.shape, logits.device.type) == ((1, 2, *whole), "meta")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # seconds of a step: 0.02 of recipe64; 6 * 358e9 multiply-adds * 5 / 5e13 = 0.21 of strong
        ("recipe64", True),  # 600 * 128 * 0.02 = 1,536 s
        ("recipe64 trainer.max_epochs=300", False),
        ("strong trainer.max_epochs=30", True),  # 30 * 250 * 0.21 = 1,600 s
        ("strong hardware=cpu", False),
    ],
)
def test_a_network_is_compiled_where_training_takes_twenty_minutes(monkeypatch, words, expected):
    cfg = compose("train", "hardware=rtx4090", *f"experiment={words}".split())
    data = data_of(cfg, STRONG, 250) if words.startswith("strong") else data_of(cfg, RECIPE, 128)
    monkeypatch.setattr(setup.hardware, "can_compile", lambda: True)
    assert setup.is_compiled(cfg, data) is expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's
def test_only_the_network_is_compiled(prepared, tmp_path, command, monkeypatch):
    modes, compile_module = [], nn.Module.compile

    def without_code(module, mode, **options):
        modes.append(mode)
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", without_code)
    torch._dynamo.reset()
    counters.clear()
    words = ["experiment=strong", "data.patch_voxels=40000", "hardware.compile=true"]
    words += ["hardware.compile_mode=reduce-overhead", "augment=full"]
    words += ["trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    ended = command("train", *smoke(prepared, tmp_path / "run"), *words)
    assert ended.code == 0, ended.err
    assert (modes, dict(counters["graph_break"])) == (["reduce-overhead"], {})
    assert counters["stats"]["unique_graphs"] <= 3  # training, and validation of one or two
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert not [name for name in best["state_dict"] if "_orig_mod" in name]


# what hardware=auto finds


@pytest.mark.parametrize(
    ("units", "precision"),
    [({"avx512_bf16": True}, "bf16-mixed"), ({"avx512_f": True}, "32-true")],
)
def test_the_precision_of_a_cpu_is_what_it_has_units_for(monkeypatch, units, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    machine = hardware.detect.__wrapped__()
    assert (machine.accelerator, machine.precision, machine.num_workers) == ("cpu", precision, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_kept_for_the_next_step():
    def new_pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    hardware.keep_freed_memory()
    assert min(new_pages() for _ in range(5)) < 1000


@pytest.mark.parametrize(
    ("gigabytes", "patch_voxels", "batch_size"),  # voxels: (0.6 * memory - 1.5e9) / 1600
    [(2, 133_333, 2), (24, 1_600_000, 5), (141, 4_000_000, 8)],
)
def test_patches_and_batches_suit_the_gpu(monkeypatch, gigabytes, patch_voxels, batch_size):
    card = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: gigabytes > 2)
    machine = hardware.detect.__wrapped__()
    assert (machine.patch_voxels, machine.batch_size) == (patch_voxels, batch_size)
    assert machine.precision == ("bf16-mixed" if gigabytes > 2 else "16-mixed")


def test_the_configured_gpu_has_autotuning_and_a_rate_for_its_width(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cfg = compose("train", "hardware=rtx4090", "experiment=strong", "hardware.devices=[1]")
    settings = hardware.device_settings(cfg.hardware)
    assert settings == {"device": "cuda:1", "precision": "bf16-mixed"}
    assert torch.backends.cudnn.benchmark and cfg.optimizer.lr == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("driver", "cuda", "advice"),
    [
        (580, None, "/cu130"),
        (550, "13.0", "/cu126"),
        (580, "13.0", "check CUDA_VISIBLE_DEVICES and the GPUs of the container"),
        (470, None, "driver 470 is too old for torch; install 525 or later"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_reported_with_advice(monkeypatch, driver, cuda, advice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "driver_version", lambda: driver)
    assert hardware.detect.__wrapped__().advice.endswith(advice)
    with pytest.raises(PancsegError, match=r"torch finds no GPU; a GPU"):
        hardware.check_accelerator("gpu")


def test_out_of_memory_is_recognised_in_errors_of_libraries():
    wrapped = RuntimeError("MONAI: cannot compute the importance map")
    wrapped.__cause__ = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert hardware.is_out_of_memory(wrapped) and hardware.is_out_of_memory(MemoryError())
    assert not hardware.is_out_of_memory(RuntimeError("shapes differ"))
