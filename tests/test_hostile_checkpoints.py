"""Checkpoints of a stranger: nothing in them is run, fetched or written, and memory is bounded."""

import builtins
import copy
import pickle
import resource
import shutil
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


class Call:
    """Calls a function where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_pickle_is_not_run(content, prepared, command):
    FILE.write_bytes(pickle.dumps(Call(builtins.open, "hacked", "w")))
    refuses()
    refuses(open_weights)
    in_place_of_a_tensor = Call(builtins.open, "hacked", "w")
    torch.save(put(content, "state_dict/extra", in_place_of_a_tensor), FILE)
    refuses()
    refuses(open_weights)
    ended = command("train", *smoke(prepared, Path("run"), f"ckpt_path={FILE}"))
    assert (ended.code, ended.err.count("\n"), f"ckpt_path={FILE}: " in ended.err) == (2, 1, True)
    assert not Path("hacked").exists()


TARGETS = [
    "os.system", "builtins.eval", "torch.hub.load", "torch.optim.Adam", "pancseg..os.system",
    "monai.networks.nets.resnet.torch.hub.load", "monai.networks.trt_compiler.TrtCompiler",
    "monai.networks.nets.resnet.get_pretrained_resnet_medicalnet", "pancseg.train.train",
    "monai.networks.nets.UNet.__init__", ["os.system"], {"_target_": "os.system"},
]  # fmt: skip


def test_only_networks_are_built(content):
    for target in TARGETS:
        node = {"_target_": target, "command": "touch hacked"}
        torch.save(put(content, "hyper_parameters/model", node), FILE)
        refuses(match=r"_target_=.*not allowed")
    torch.save(put(content, "hyper_parameters/_instantiator", "os.system"), FILE)  # of Lightning
    assert open_checkpoint(FILE).epoch == content["epoch"] + 1
    assert not Path("hacked").exists()


BAD = {
    "datamodule_hyper_parameters/spacing_mm": [1e-4] * 3, "hyper_parameters": [], "state_dict": {},
    "hyper_parameters/view": {"size": [4096] * 3, "overlap": 0.25},
}  # fmt: skip


def test_a_value_that_training_never_writes_is_refused_in_one_line(content):
    for where, value in BAD.items():
        torch.save(put(content, where, value), FILE)
        refuses()
    torch.save(put(content, "CTDataModule/split", {"train": [{}]}), FILE)
    refuses(open_weights)  # whom the weights know


def huge_network(content):
    torch.save(put(content, "hyper_parameters/model/channels", [2**16] * 5), FILE)


def huge_bytes(content):
    """Asks for memory where it is unpickled; torch's own reader lets it."""
    torch.save({**content, "more": Call(bytearray, 2 * 10**8)}, FILE)


def tensor_without_values(content):
    """A weight of the right shape that holds one number."""
    name = next(name for name in content["state_dict"] if name.startswith("network."))
    shape = content["state_dict"][name].shape
    torch.save(put(content, f"state_dict/{name}", torch.zeros(1).expand(shape)), FILE)


def packed(content):
    """256 MB of zeros packed into one more entry."""
    torch.save(content, "whole.ckpt")
    with zipfile.ZipFile("whole.ckpt") as plain, zipfile.ZipFile(FILE, "w", 8) as file:
        for entry in plain.infolist():
            file.writestr(entry, plain.read(entry))
        file.writestr(f"{plain.infolist()[0].filename.partition('/')[0]}/data/9999", bytes(2**28))


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (huge_network, "size mismatch"),
        (huge_bytes, "asks for memory"),
        (tensor_without_values, "without its"),
        (packed, "compress"),
    ],
)
def test_no_file_makes_its_reader_take_more_memory_than_it_holds(bomb, reason, content):
    bomb(content)
    assert FILE.stat().st_size < 4e6
    with within(700), pytest.raises(PancsegError) as refused:
        open_checkpoint(FILE)
    assert reason in str(refused.value.__cause__)  # not that memory ran out


def test_a_resumed_run_removes_no_file_that_a_checkpoint_names(content):
    best = Path("checkpoints/best.ckpt").resolve()
    best.parent.mkdir()
    best.touch()
    callback, path = BestCheckpoint(str(best.parent)), str(best.parent / "../../keep")
    state = next(v for k, v in content["callbacks"].items() if k.startswith("BestCheckpoint"))
    names = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), path)
    callback.load_state_dict({**state, **names, "best_k_models": {path: torch.tensor(0.1)}})
    paths = [callback.best_model_path, callback.kth_best_model_path, *callback.best_k_models]
    assert {Path(path).resolve() for path in paths} == {best}
    assert callback.last_model_path in ("", str(best))


def test_an_optimizer_state_of_other_shapes_is_refused(prepared, trained, command):
    network = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4)).sum().backward()
    optimizer.step()
    check_optimizer_state([optimizer.state_dict()], network)
    other_shape = torch.zeros(3)
    for key in ("exp_avg", "step"):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0][key] = other_shape
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
    content["optimizer_states"][0]["state"][0]["exp_avg"] = other_shape
    torch.save(content, last)
    ended = command("train", *smoke(prepared, Path("run"), "ckpt_path=last"))
    assert (ended.code, "state of another optimizer" in ended.err) == (2, True)


def test_links_in_a_run_folder_are_not_followed(prepared, tmp_path, command):
    victim, link = tmp_path / "victim", tmp_path / "run" / "train.log"
    victim.write_text("mine")
    link.parent.mkdir()
    link.symlink_to(victim)
    ended = command("train", *smoke(prepared, tmp_path / "run", "trainer.max_epochs=1"))
    assert (ended.code, f"{link}: is a link" in ended.err) == (2, True)
    assert victim.read_text() == "mine"
