"""Checkpoints of a stranger: nothing in them is run, fetched or written, and memory is bounded."""

import builtins
import copy
import importlib
import inspect
import pickle
import pkgutil
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.losses
import monai.networks
import pytest
import torch
from torch import nn

from pancseg.errors import PancsegError
from pancseg.inference.checkpoint import open_checkpoint
from pancseg.models.factory import build, check_loads_nothing, find_class
from pancseg.models.pretrained import open_weights
from pancseg.models.segmenter import Segmenter
from pancseg.training.checkpoints import BestCheckpoint
from pancseg.training.resume import check_optimizer_state
from tests.bounded import within
from tests.conftest import Command, smoke

Content = dict[str, Any]


@pytest.fixture(scope="module")
def content(trained: Path) -> Content:
    return torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)  # type: ignore[no-any-return]


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return tmp_path / "bad.ckpt"


def put(content: Content, where: str, value: Any) -> Content:
    """A copy of a checkpoint's content with one value changed."""
    node = changed = copy.deepcopy(content)
    *path, last = where.split("/")
    for name in path:
        node = node[name]
    node[last] = value
    return changed


class Mark:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.open, (str(self.path), "w")


class Huge:
    """Asks for memory where it is unpickled; torch's own reader lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**11,)


@pytest.mark.row("a malicious checkpoint: a pickle", "not run, code 2")
@pytest.mark.parametrize("key", ["checkpoint", "ckpt_path", "init_from"])
def test_a_pickle_is_not_run(
    key: str, content: Content, prepared: Path, bad: Path, tmp_path: Path, command: Command
) -> None:
    mark = Mark(tmp_path / "hacked")
    bad.write_bytes(pickle.dumps(mark))
    with pytest.raises(PancsegError):
        open_checkpoint(bad)
    torch.save(put(content, "state_dict/extra", mark), bad)  # in the place of a tensor
    with pytest.raises(PancsegError):
        open_checkpoint(bad)
    torch.save(put(content, "hyper_parameters/model", mark), bad)
    output = ["input=x", f"output={tmp_path / 'out'}"]
    commands = {"evaluate": [], "predict": output, "export": output[1:]}
    if key != "checkpoint":
        commands = {"train": smoke(prepared, tmp_path / "run")}
    for name, words in commands.items():
        ended = command(name, f"{key}={bad}", *words)
        assert (ended.code, ended.err.count("\n"), f"{key}={bad}: " in ended.err) == (2, 1, True)
    assert not (tmp_path / "hacked").exists()


TARGETS = [
    "os.system", "posix.system", "builtins.eval", "torch.load", "torch.hub.load",
    "monai.networks.utils.pickle_operations", "monai.networks.nets.resnet.torch.hub.load",
    "monai.networks.trt_compiler.TrtCompiler", "torch.optim.Adam", "pancseg..os.system",
    "monai.networks.nets.resnet.get_pretrained_resnet_medicalnet", "pancseg.\0.x",
    "torch.optim.swa_utils.torch.load", "pancseg.train.train", "pancseg.files.write_text",
    "pancseg.models.factory.importlib.import_module", "monai.networks.nets.UNet.__init__",
    ["os.system"], None, {"_target_": "os.system"},
]  # fmt: skip


@pytest.mark.row("a malicious checkpoint: `_target_`", "not called, code 2")
def test_only_networks_are_built(content: Content, bad: Path, tmp_path: Path) -> None:
    for target in TARGETS:
        node = {"_target_": target, "command": f"touch {tmp_path / 'hacked'}"}
        torch.save(put(content, "hyper_parameters/model", node), bad)
        with pytest.raises(PancsegError, match=r"_target_=.*not allowed"):
            open_checkpoint(bad)
    torch.save(put(content, "hyper_parameters/_instantiator", "os.system"), bad)  # of Lightning
    assert open_checkpoint(bad).epoch == content["epoch"] + 1
    assert not (tmp_path / "hacked").exists()


def test_a_loss_that_runs_a_program_out_of_a_folder_beside_the_checkpoint_is_refused(
    tmp_path: Path,
) -> None:
    # torch.hub runs hubconf.py of its cache without asking for the network
    hub = tmp_path / "warvito_MedicalNet-models_main"
    hub.mkdir()
    (hub / "hubconf.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')\n")
    node = {
        "_target_": "monai.losses.PerceptualLoss", "spatial_dims": 3, "is_fake_3d": False,
        "pretrained": False, "network_type": "medicalnet_resnet10_23datasets",
        "channel_wise": True, "cache_dir": str(tmp_path),
    }  # fmt: skip
    with pytest.raises(PancsegError, match="not allowed"):
        build(node, nn.Module)
    assert not (tmp_path / "hacked").exists()


def test_no_class_of_monai_is_built_that_has_a_file_or_an_address_set() -> None:
    """Every network and loss, with a path in each argument that sounds like one."""
    accepted, classes = [], 0
    for package in (monai.networks, monai.losses):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(info.name)).items():
                built_class = find_class(f"{info.name}.{name}") if isinstance(value, type) else None
                if built_class is None or not issubclass(built_class, nn.Module):
                    continue
                classes += 1
                for argument in filter(
                    sounds_like_a_path, inspect.signature(built_class).parameters
                ):
                    try:
                        check_loads_nothing(built_class, {argument: "/somewhere"})
                        accepted.append(f"{info.name}.{name}.{argument}")
                    except PancsegError:
                        pass
    assert accepted == []
    assert classes > 200


def sounds_like_a_path(argument: str) -> bool:
    words = ("path", "url", "dir", "file", "pretrained", "repo")
    harmless = ("drop_path", "dropout_path", "direction", "bidir")
    return any(word in argument for word in words) and not argument.startswith(harmless)


BAD: dict[str, Any] = {
    "datamodule_hyper_parameters/spacing_mm": [1e-4, 1e-4, 1e-4],
    "datamodule_hyper_parameters/sampling": "patches",
    "hyper_parameters/view": {"size": [4096] * 3, "overlap": 0.25},
    "hyper_parameters/model": [1],
    "hyper_parameters": [],
    "CTDataModule/seen_before": [{}],
    "CTDataModule/profile": {"no": "profile"},
    "CTDataModule/split": {"train": [{}]},
    "CTDataModule": {},
    "state_dict": {},
    "epoch": "many",
    "callbacks": [1],
    "callbacks/Timer": 5,
}


@pytest.mark.parametrize("where", BAD)
def test_a_value_that_training_never_writes_is_refused_in_one_line(
    where: str, content: Content, bad: Path
) -> None:
    torch.save(put(content, where, BAD[where]), bad)
    with within(500), pytest.raises(PancsegError, match=r"^checkpoint=[^\n]+$"):
        open_checkpoint(bad)
    if where == "CTDataModule/split":  # whom the weights know
        with pytest.raises(PancsegError, match=r"^init_from=[^\n]+$"):
            open_weights(bad)


def huge_network(content: Content, path: Path) -> None:
    torch.save(put(content, "hyper_parameters/model/channels", [2**16] * 5), path)


def huge_bytes(content: Content, path: Path) -> None:
    torch.save({**content, "more": Huge()}, path)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> None:
    """Write the entries of a file of torch anew, and more entries, packed."""
    whole = path.rename(path.with_suffix(".whole"))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry, change(entry.filename, old.read(entry)))
        for name, value in more.items():
            new.writestr(f"{old.infolist()[0].filename.partition('/')[0]}/data/{name}", value)


def packed(content: Content, path: Path) -> None:
    """256 MB of zeros packed into one more entry."""
    torch.save(content, path)
    rewritten(path, lambda name, value: value, **{"9999": bytes(2**28)})


def overlapping(content: Content, path: Path) -> None:
    """Every entry of the table of contents names the same long bytes."""
    torch.save(content, path)
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", 10**9, 10**9)
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)


def tensor_without_values(content: Content, path: Path) -> None:
    """A weight of one number that is shown as a trillion."""
    name = next(name for name in content["state_dict"] if name.startswith("network."))
    torch.save(put(content, f"state_dict/{name}", torch.zeros(1).expand(10**6, 10**6)), path)


def storage_that_is_not_there(content: Content, path: Path) -> None:
    """A tensor whose size in the pickle is a million times that of its numbers."""
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
    rewritten(path, lambda _, value: value.replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b"))


BOMBS = [
    huge_network, huge_bytes, packed, overlapping, tensor_without_values, storage_that_is_not_there,
]  # fmt: skip


@pytest.mark.row("a malicious checkpoint: a bomb for the memory", "refused within its size, code 2")
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_file_makes_its_reader_take_more_memory_than_it_holds(
    bomb: Callable[[Content, Path], None], content: Content, bad: Path
) -> None:
    bomb(content, bad)
    assert bad.stat().st_size < 4e6
    with within(700):
        with pytest.raises(PancsegError, match=r"^checkpoint=[^\n]+$"):
            open_checkpoint(bad)
        if bomb not in (huge_network, tensor_without_values):  # neither matters to init_from
            with pytest.raises(PancsegError, match=r"^init_from=[^\n]+$"):
                open_weights(bad)


@pytest.mark.row("a malicious checkpoint: paths that lead elsewhere", "nothing outside touched")
@pytest.mark.parametrize("name", ["..", "../../keep", "last.ckpt"])
def test_a_resumed_run_removes_no_file_that_a_checkpoint_names(
    name: str, content: Content, tmp_path: Path
) -> None:
    best, path = tmp_path / "checkpoints" / "best.ckpt", str(tmp_path / "checkpoints" / name)
    best.parent.mkdir()
    best.touch()
    callback = BestCheckpoint(str(best.parent))
    state = next(v for k, v in content["callbacks"].items() if k.startswith("BestCheckpoint"))
    names = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), path)
    callback.load_state_dict({**state, **names, "best_k_models": {path: torch.tensor(0.1)}})
    for found in (callback.best_model_path, callback.kth_best_model_path, *callback.best_k_models):
        assert Path(found).resolve() == best.resolve()
    assert callback.last_model_path in ("", str(best))


def test_what_a_checkpoint_names_as_its_data_is_read_and_never_written(
    content: Content, prepared: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(prepared, tmp_path / "root", ignore=shutil.ignore_patterns("cache"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    (tmp_path / "x").mkdir()
    torch.save(put(content, "datamodule_hyper_parameters/root", f"{tmp_path}/x/../root"), best)
    assert command("evaluate", f"checkpoint={best}").code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before


DAMAGES: list[Callable[[Any], Any]] = [
    lambda state: state["state"][0].__setitem__("exp_avg", torch.zeros(1)),
    lambda state: state["state"][0].__setitem__("exp_avg", [1.0]),
    lambda state: state["state"][0].__setitem__("step", torch.zeros(3)),
    lambda state: state["param_groups"][0]["params"].pop(),
    lambda state: state.pop("state"),
]


def test_an_optimizer_state_of_other_shapes_is_refused_before_a_step_writes_beyond_it(
    prepared: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    network: Any = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4)).sum().backward()
    optimizer.step()
    check_optimizer_state([optimizer.state_dict()], network)
    for damage in DAMAGES:
        state = copy.deepcopy(optimizer.state_dict())
        damage(state)
        with pytest.raises(PancsegError, match="state of another optimizer"):
            check_optimizer_state([state], network)
    last = shutil.copytree(trained, tmp_path / "run") / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    DAMAGES[0](content["optimizer_states"][0])
    torch.save(content, last)
    words = smoke(prepared, tmp_path / "run", "trainer.max_epochs=4", "ckpt_path=last")
    ended = command("train", *words)
    assert (ended.code, "state of another optimizer" in ended.err) == (2, True)


def test_a_forged_optimizer_state_is_copied_into_memory_of_its_own() -> None:
    """A state of stride 0 has the right shape, and no memory behind most of its elements."""
    network = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    forged = torch.ones(1).as_strided((3, 4), (0, 0))
    optimizer.state[network.weight] = {"step": torch.tensor(1.0), "exp_avg": forged}
    module: Any = SimpleNamespace(trainer=SimpleNamespace(optimizers=[optimizer]))
    Segmenter.on_train_start(module)
    state = optimizer.state[network.weight]["exp_avg"]
    assert state.stride() == network.weight.stride()
    assert state.untyped_storage().nbytes() == 4 * 12


@pytest.mark.parametrize("name", ["train.log", "tensorboard", ".hydra/x.yaml"])
def test_links_in_a_run_folder_are_not_followed(
    prepared: Path, tmp_path: Path, command: Command, name: str
) -> None:
    victim, link = tmp_path / "victim", tmp_path / "run" / name
    victim.mkdir() if name == "tensorboard" else victim.write_text("mine")
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    ended = command("train", *smoke(prepared, tmp_path / "run", "trainer.max_epochs=1"))
    assert (ended.code, f"{link}: is a link" in ended.err) == (2, True)
    assert victim.read_text() == "mine" if victim.is_file() else not [*victim.iterdir()]
