"""Checkpoints of a stranger: nothing in them is run, fetched or written, and memory is bounded."""

import builtins
import copy
import pickle
import resource
import shutil
import struct
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pancseg.errors import PancsegError
from pancseg.inference.checkpoint import open_checkpoint
from pancseg.models.pretrained import open_weights
from pancseg.models.segmenter import Segmenter
from pancseg.training.checkpoints import BestCheckpoint
from pancseg.training.resume import check_optimizer_state
from tests.conftest import smoke

FILE = Path("bad.ckpt")  # in the folder of each test


@contextmanager
def within(megabytes):
    """Bound the memory that this process may take in addition; on Linux alone."""
    if sys.platform == "linux":
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, hard))
    try:
        yield
    finally:
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def content(trained):
    return torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)


def put(content, where, value):
    """A copy of a checkpoint's content with one value changed."""
    node = changed = copy.deepcopy(content)
    *path, last = where.split("/")
    for name in path:
        node = node[name]
    node[last] = value
    return changed


def refuses(read=open_checkpoint, match=r"^\w+=[^\n]+$"):
    with within(700), pytest.raises(PancsegError, match=match):
        read(FILE)


class Unpickled:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def mark(path):
    """Makes a file where it is unpickled."""
    return Unpickled(builtins.open, str(path), "w")


@pytest.mark.parametrize("key", ["checkpoint", "ckpt_path", "init_from"])
def test_a_pickle_is_not_run(key, content, prepared, command):
    FILE.write_bytes(pickle.dumps(mark("hacked")))
    refuses()
    torch.save(put(content, "state_dict/extra", mark("hacked")), FILE)  # in the place of a tensor
    refuses()
    torch.save(put(content, "hyper_parameters/model", mark("hacked")), FILE)
    commands = {"evaluate": [], "predict": ["input=x", "output=out"], "export": ["output=out"]}
    if key != "checkpoint":
        commands = {"train": smoke(prepared, Path("run"))}
    for name, words in commands.items():
        ended = command(name, f"{key}={FILE}", *words)
        assert (ended.code, ended.err.count("\n"), f"{key}={FILE}: " in ended.err) == (2, 1, True)
    assert not Path("hacked").exists()


TARGETS = [
    "os.system", "posix.system", "builtins.eval", "torch.load", "torch.hub.load",
    "monai.networks.utils.pickle_operations", "monai.networks.nets.resnet.torch.hub.load",
    "monai.networks.trt_compiler.TrtCompiler", "torch.optim.Adam", "pancseg..os.system",
    "monai.networks.nets.resnet.get_pretrained_resnet_medicalnet", "monai.losses.PerceptualLoss",
    "torch.optim.swa_utils.torch.load", "pancseg.train.train", "pancseg.files.write_text",
    "pancseg.models.factory.importlib.import_module", "monai.networks.nets.UNet.__init__",
    "pancseg.\0.x", ["os.system"], None, {"_target_": "os.system"},
]  # fmt: skip


def test_only_networks_are_built(content):
    for target in TARGETS:
        node = {"_target_": target, "command": "touch hacked"}
        torch.save(put(content, "hyper_parameters/model", node), FILE)
        refuses(match=r"_target_=.*not allowed")
    torch.save(put(content, "hyper_parameters/_instantiator", "os.system"), FILE)  # of Lightning
    assert open_checkpoint(FILE).epoch == content["epoch"] + 1
    assert not Path("hacked").exists()


OF_DATA, OF_MODEL = "datamodule_hyper_parameters", "hyper_parameters"
BAD = {
    f"{OF_DATA}/spacing_mm": [1e-4] * 3, f"{OF_DATA}/sampling": "patches", f"{OF_MODEL}/model": [1],
    f"{OF_MODEL}/view": {"size": [4096] * 3, "overlap": 0.25}, "hyper_parameters": [],
    "CTDataModule/seen_before": [{}], "CTDataModule/profile": {"no": "profile"},
    "CTDataModule/split": {"train": [{}]}, "CTDataModule": {}, "state_dict": {}, "epoch": "many",
    "callbacks": [1], "callbacks/Timer": 5,
}  # fmt: skip


@pytest.mark.parametrize("where", BAD)
def test_a_value_that_training_never_writes_is_refused_in_one_line(where, content):
    torch.save(put(content, where, BAD[where]), FILE)
    refuses()
    if where == "CTDataModule/split":  # whom the weights know
        refuses(open_weights)


def huge_network(content):
    torch.save(put(content, "hyper_parameters/model/channels", [2**16] * 5), FILE)


def huge_bytes(content):
    """Asks for memory where it is unpickled; torch's own reader lets it."""
    torch.save({**content, "more": Unpickled(bytearray, 10**11)}, FILE)


def tensor_without_values(content):
    """A weight of the right shape that holds one number."""
    name = next(name for name in content["state_dict"] if name.startswith("network."))
    shape = content["state_dict"][name].shape
    torch.save(put(content, f"state_dict/{name}", torch.zeros(1).expand(shape)), FILE)


def overlapping(content):
    """Every entry of the table of contents names the same long bytes."""
    torch.save(content, FILE)
    data = bytearray(FILE.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", 10**9, 10**9)
        at = data.find(b"PK\x01\x02", at + 4)
    FILE.write_bytes(data)


def packed(content):
    """256 MB of zeros packed into one more entry."""
    torch.save(content, "whole.ckpt")
    with zipfile.ZipFile("whole.ckpt") as plain, zipfile.ZipFile(FILE, "w", 8) as file:
        for entry in plain.infolist():
            file.writestr(entry, plain.read(entry))
        file.writestr(f"{plain.infolist()[0].filename.partition('/')[0]}/data/9999", bytes(2**28))


OF_THE_NETWORK = huge_network, tensor_without_values
BOMBS = [*OF_THE_NETWORK, huge_bytes, packed, overlapping]


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_file_makes_its_reader_take_more_memory_than_it_holds(bomb, content):
    bomb(content)
    assert FILE.stat().st_size < 4e6
    refuses()
    if bomb not in OF_THE_NETWORK:  # which init_from does not build
        refuses(open_weights)


@pytest.mark.parametrize("name", ["..", "../../keep", "last.ckpt"])
def test_a_resumed_run_removes_no_file_that_a_checkpoint_names(name, content):
    best = Path("checkpoints/best.ckpt").resolve()
    best.parent.mkdir()
    best.touch()
    callback, path = BestCheckpoint(str(best.parent)), str(best.parent / name)
    state = next(v for k, v in content["callbacks"].items() if k.startswith("BestCheckpoint"))
    names = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), path)
    callback.load_state_dict({**state, **names, "best_k_models": {path: torch.tensor(0.1)}})
    paths = [callback.best_model_path, callback.kth_best_model_path, *callback.best_k_models]
    assert {Path(path).resolve() for path in paths} == {best}
    assert callback.last_model_path in ("", str(best))


DAMAGES = [
    lambda state: state["state"][0].__setitem__("exp_avg", torch.zeros(1)),
    lambda state: state["state"][0].__setitem__("exp_avg", [1.0]),
    lambda state: state["state"][0].__setitem__("step", torch.zeros(3)),
    lambda state: state["param_groups"][0]["params"].pop(),
    lambda state: state.pop("state"),
]


def test_an_optimizer_state_of_other_shapes_is_refused(prepared, trained, command):
    network = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4)).sum().backward()
    optimizer.step()
    check_optimizer_state([optimizer.state_dict()], network)
    for damage in DAMAGES:
        damage(state := copy.deepcopy(optimizer.state_dict()))
        with pytest.raises(PancsegError, match="state of another optimizer"):
            check_optimizer_state([state], network)
    # a state of the right shape without memory of its own is copied
    forged = torch.ones(1).as_strided((3, 4), (0, 0))
    optimizer.state[network.weight]["exp_avg"] = forged
    Segmenter.on_train_start(SimpleNamespace(trainer=SimpleNamespace(optimizers=[optimizer])))
    state = optimizer.state[network.weight]["exp_avg"]
    assert (state.stride(), state.untyped_storage().nbytes()) == (network.weight.stride(), 4 * 12)
    last = shutil.copytree(trained, "run") / Path("checkpoints/last.ckpt")
    content = torch.load(last, weights_only=True)
    DAMAGES[0](content["optimizer_states"][0])
    torch.save(content, last)
    ended = command("train", *smoke(prepared, Path("run"), "ckpt_path=last"))
    assert (ended.code, "state of another optimizer" in ended.err) == (2, True)


@pytest.mark.parametrize("name", ["train.log", "tensorboard", ".hydra/x.yaml"])
def test_links_in_a_run_folder_are_not_followed(prepared, tmp_path, command, name):
    victim, link = tmp_path / "victim", tmp_path / "run" / name
    victim.mkdir() if name == "tensorboard" else victim.write_text("mine")
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    ended = command("train", *smoke(prepared, tmp_path / "run", "trainer.max_epochs=1"))
    assert (ended.code, f"{link}: is a link" in ended.err) == (2, True)
    assert victim.read_text() == "mine" if victim.is_file() else not [*victim.iterdir()]
