"""Checkpoints of a stranger: nothing in them is run, fetched or written, and memory is bounded."""

import ast
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
from tests.bounded import within
from tests.conftest import Command, smoke

Content = dict[str, Any]


@pytest.fixture(scope="module")
def best(trained: Path) -> Path:
    return trained / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def content(best: Path) -> Content:
    return torch.load(best, weights_only=True)  # type: ignore[no-any-return]


def put(content: Content, where: str, value: Any) -> Content:
    """A copy of a checkpoint's content with one value changed."""
    changed = copy.deepcopy(content)
    *path, last = where.split("/")
    node = changed
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
@pytest.mark.parametrize("door", ["checkpoint", "ckpt_path", "init_from"])
@pytest.mark.parametrize("form", ["zip", "plain", "in_a_tensors_place"])
def test_a_pickle_is_run_through_no_door(
    door: str, form: str, content: Content, prepared: Path, tmp_path: Path, command: Command
) -> None:
    bad, mark = tmp_path / "bad.ckpt", Mark(tmp_path / "hacked")
    if form == "plain":
        bad.write_bytes(pickle.dumps(mark))
    elif form == "zip":
        torch.save(put(content, "hyper_parameters/model", mark), bad)
    else:
        torch.save(put(content, "state_dict/extra", mark), bad)
    if door == "checkpoint":
        ended = command("evaluate", f"checkpoint={bad}")
        for name in ("predict", "export"):
            words = ["input=x"] if name == "predict" else []
            told = command(name, f"checkpoint={bad}", *words, f"output={tmp_path / 'o'}")
            assert told.code == 2
    else:
        small = ["experiment=smoke", "data.depth=32", f"data.root={prepared}"]
        small += ["data.spacing_mm=[8,8,8]", f"hydra.run.dir={tmp_path / 'run'}"]
        ended = command("train", *small, f"{door}={bad}")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert f"{door}={bad}: " in ended.err
    assert not (tmp_path / "hacked").exists()


TARGETS = [
        "os.system", "posix.system", "builtins.eval", "torch.load", "torch.hub.load",
        "monai.networks.utils.pickle_operations", "monai.networks.nets.resnet.torch.hub.load",
        "monai.networks.trt_compiler.TrtCompiler", "torch.optim.Adam",
        "monai.networks.nets.resnet.get_pretrained_resnet_medicalnet",
        "torch.optim.swa_utils.torch.load", "pancseg.train.train", "pancseg.files.write_text",
        "pancseg.models.factory.importlib.import_module", "pancseg..os.system", "pancseg.\0.x",
        "monai.networks.nets.UNet.__init__", ["os.system"], None, {"_target_": "os.system"},
]  # fmt: skip


@pytest.mark.row("a malicious checkpoint: `_target_`", "not called, code 2")
@pytest.mark.parametrize("target", TARGETS)
def test_only_networks_are_built(target: Any, content: Content, tmp_path: Path) -> None:
    node = {"_target_": target, "command": f"touch {tmp_path / 'hacked'}"}
    torch.save(put(content, "hyper_parameters/model", node), tmp_path / "bad.ckpt")
    with pytest.raises(PancsegError, match=r"_target_=.*not allowed"):
        open_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "hacked").exists()


def test_a_loss_that_runs_a_program_out_of_a_folder_beside_the_checkpoint_is_refused(
    tmp_path: Path,
) -> None:
    # torch.hub runs hubconf.py of its cache without asking for the network
    hub = tmp_path / "warvito_MedicalNet-models_main"
    hub.mkdir()
    (hub / "hubconf.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')\n")
    before = torch.hub.get_dir()
    node = {
        "_target_": "monai.losses.PerceptualLoss", "spatial_dims": 3, "is_fake_3d": False,
        "pretrained": False, "network_type": "medicalnet_resnet10_23datasets",
        "channel_wise": True, "cache_dir": str(tmp_path),
    }  # fmt: skip
    with pytest.raises(PancsegError, match="not allowed"):
        build(node, nn.Module)
    assert torch.hub.get_dir() == before
    assert not (tmp_path / "hacked").exists()


# what opens, fetches or looks up by name within MONAI's networks and losses, and why it stays out
REVIEWED = {
    "nets.densenet": "pretrained",
    "nets.hovernet": "pretrained_url",
    "nets.senet": "pretrained",
    "nets.efficientnet": "pretrained",
    "nets.resnet": "pretrained",
    "nets.transchex": "path_or_repo_id",
    "blocks.text_embedding": "pretrained",
    "nets.swin_unetr": "a function, no class",
    "nets.flexible_unet": "looks names up where it is imported, of its own",
    "trt_compiler": "no module",
    "utils": "functions, no class",
    "perceptual": "not built at all",
}
FETCH = {
    "load_state_dict_from_url", "load_url", "download_url", "hf_hub_download", "from_pretrained",
    "set_dir", "locate", "import_module", "urlopen", "urlretrieve", "eval", "exec", "system",
    "Popen", "check_call", "check_output", "open", "_instantiate_target",
}  # fmt: skip


def fetches(tree: ast.AST) -> bool:
    """Whether a source calls anything that opens, fetches or looks up."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            if text in ("torch.load", "torch.hub.load", *FETCH) or (
                text.rpartition(".")[2] in FETCH - {"eval", "open", "exec"}
            ):
                return True
    return False


def test_every_room_of_monai_that_fetches_is_known_to_be_kept_out() -> None:
    found = set()
    for package in (monai.networks, monai.losses):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            if fetches(ast.parse(path.read_text(encoding="utf-8"))):
                room = path.relative_to(Path(str(package.__file__)).parent).with_suffix("")
                found.add(".".join(room.parts))
    assert "nets.resnet" in found
    assert found <= set(REVIEWED), "a new version of MONAI: look at these, then name them"


def test_no_class_of_monai_is_built_that_has_a_file_or_an_address_set() -> None:
    """Every network and loss, with a path in each argument that is not a number."""
    taken, looked = [], 0
    for package in (monai.networks, monai.losses):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, found in vars(importlib.import_module(info.name)).items():
                if isinstance(found, type) and issubclass(found, nn.Module):
                    allowed = find_class(f"{info.name}.{name}")
                    looked += allowed is not None
                    if allowed:
                        taken += [f"{info.name}.{name}.{n}" for n in paths_taken(allowed)]
    assert taken == []
    assert looked > 200


def paths_taken(found: type) -> list[str]:
    """Arguments that sound like a place and are let through with one."""
    parameters = inspect.signature(found).parameters
    words = ("path", "url", "dir", "file", "pretrained", "repo")
    places = [
        name
        for name in parameters
        if any(word in name for word in words)
        and not name.startswith(("drop_path", "dropout_path", "direction", "bidir"))
    ]
    through = []
    for name in places:
        try:
            check_loads_nothing(found, {name: "/somewhere"})
            through.append(name)
        except PancsegError:
            pass
    return through


def test_a_name_that_lightning_would_call_is_not_called(content: Content, tmp_path: Path) -> None:
    hacked = put(content, "hyper_parameters/_instantiator", "os.system")
    torch.save(hacked, tmp_path / "bad.ckpt")
    assert open_checkpoint(tmp_path / "bad.ckpt").epoch == content["epoch"] + 1


BAD: dict[str, Any] = {
    "datamodule_hyper_parameters/spacing_mm": [1e-4, 1e-4, 1e-4],
    "datamodule_hyper_parameters/sampling": "patches",
    "hyper_parameters/view": {"size": [4096] * 3, "overlap": 0.25},
    "hyper_parameters/model": [1],
    "hyper_parameters": [],
    "CTDataModule/seen_before": [{}],
    "CTDataModule/profile": {"no": "profile"},
    "CTDataModule": None,
    "state_dict": {},
    "epoch": "many",
}


@pytest.mark.parametrize("where", BAD)
def test_a_value_that_training_never_writes_is_refused_in_one_line(
    where: str, content: Content, tmp_path: Path
) -> None:
    torch.save(put(content, where, BAD[where]), tmp_path / "bad.ckpt")
    with within(500), pytest.raises(PancsegError, match=r"^checkpoint=[^\n]+$"):
        open_checkpoint(tmp_path / "bad.ckpt")


def huge_network(content: Content, path: Path) -> None:
    torch.save(put(content, "hyper_parameters/model/channels", [2**16] * 5), path)


def huge_bytes(content: Content, path: Path) -> None:
    torch.save({**content, "more": Huge()}, path)


def packed(content: Content, path: Path) -> None:
    """As torch writes it, with 256 MB of zeros packed into one more entry."""
    torch.save(content, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry))
        more = zipfile.ZipInfo(f"{old.infolist()[0].filename.partition('/')[0]}/data/9999")
        more.compress_type = zipfile.ZIP_DEFLATED
        with new.open(more, "w") as file:
            for _ in range(256):
                file.write(bytes(2**20))


def overlapping(content: Content, path: Path) -> None:
    """Every entry of the table of contents names the same long bytes."""
    torch.save(content, path)
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", 10**9, 10**9)
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)


def tensor_of_nothing(content: Content, path: Path) -> None:
    """A weight of one number that is shown as a trillion."""
    name = next(name for name in content["state_dict"] if name.startswith("network."))
    torch.save(put(content, f"state_dict/{name}", torch.zeros(1).expand(10**6, 10**6)), path)


def storage_that_is_not_there(content: Content, path: Path) -> None:
    """A tensor whose size in the pickle is a million times that of its numbers."""
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            held = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                held = held.replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b")
            new.writestr(entry, held)


BOMBS: list[Callable[[Content, Path], None]] = [
    huge_network, huge_bytes, packed, overlapping, tensor_of_nothing, storage_that_is_not_there,
]  # fmt: skip


@pytest.mark.row(
    "a malicious checkpoint: a bomb for the memory", "refused within its file's size, code 2"
)
@pytest.mark.parametrize("bomb", BOMBS, ids=[one.__name__ for one in BOMBS])
def test_no_file_makes_its_reader_take_more_memory_than_it_holds(
    bomb: Callable[[Content, Path], None], content: Content, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.ckpt"
    bomb(content, bad)
    assert bad.stat().st_size < 4e6
    with within(700):
        with pytest.raises(PancsegError, match=r"^checkpoint=[^\n]+$"):
            open_checkpoint(bad)
        if bomb not in (huge_network, tensor_of_nothing):  # neither matters to init_from
            with pytest.raises(PancsegError, match=r"^init_from=[^\n]+$"):
                open_weights(bad)


def test_weights_that_lie_about_whom_they_know_are_refused(
    content: Content, tmp_path: Path
) -> None:
    torch.save(put(content, "CTDataModule/split", {"train": [{}]}), tmp_path / "bad.ckpt")
    with pytest.raises(PancsegError, match=r"^init_from=[^\n]+$"):
        open_weights(tmp_path / "bad.ckpt")


@pytest.mark.row("a malicious checkpoint: paths that lead elsewhere", "nothing outside touched")
@pytest.mark.parametrize("named", ["..", "../../keep", "../last.ckpt", "last.ckpt", "a/.."])
def test_a_run_that_goes_on_removes_nothing_that_a_checkpoint_names(
    named: str, content: Content, tmp_path: Path
) -> None:
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    for kept in (
        run / "best.ckpt",
        run / "last.ckpt",
        run.parent / "splits.json",
        tmp_path / "keep",
    ):
        kept.touch()
    callback = BestCheckpoint(str(run))
    state = next(v for k, v in content["callbacks"].items() if k.startswith("BestCheckpoint"))
    path = str(run / named)
    names = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), path)
    callback.load_state_dict({**state, **names, "best_k_models": {path: torch.tensor(0.1)}})
    for told in (callback.best_model_path, callback.kth_best_model_path, *callback.best_k_models):
        assert Path(told).resolve() == (run / "best.ckpt").resolve()
    assert callback.last_model_path in ("", str(run / "best.ckpt"))


def test_what_a_checkpoint_names_as_its_data_is_read_and_never_written(
    content: Content, prepared: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(prepared, tmp_path / "root", ignore=shutil.ignore_patterns("cache"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    bad = tmp_path / "run" / "checkpoints" / "best.ckpt"
    torch.save(put(content, "datamodule_hyper_parameters/root", f"{tmp_path}/x/../root"), bad)
    (tmp_path / "x").mkdir()
    assert command("evaluate", f"checkpoint={bad}").code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["state"][0].__setitem__("exp_avg", torch.zeros(1)),
        lambda state: state["state"][0].__setitem__("exp_avg", [1.0]),
        lambda state: state["state"][0].__setitem__("step", torch.zeros(3)),
        lambda state: state["param_groups"][0]["params"].pop(),
        lambda state: state.pop("state"),
    ],
)
def test_an_optimizer_state_of_other_shapes_is_refused_before_a_step_writes_beyond_it(
    prepared: Path, trained: Path, tmp_path: Path, command: Command, damage: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    damage(content["optimizer_states"][0])
    torch.save(content, last)
    words = smoke(prepared, run, "trainer.max_epochs=4", "ckpt_path=last")
    ended = command("train", *words)
    assert ended.code == 2
    assert "ckpt_path holds the state of another optimizer or network" in ended.err


@pytest.mark.parametrize("name", ["train.log", ".hydra_resumed", "tensorboard", ".hydra/x.yaml"])
def test_links_in_a_run_folder_are_not_followed(
    prepared: Path, tmp_path: Path, command: Command, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine") if "." in name[1:] else victim.mkdir()
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(victim)
    ended = command("train", *smoke(prepared, run, "trainer.max_epochs=1"))
    assert ended.code == 2
    assert f"{run / name}: is a link" in ended.err
    assert victim.read_text() == "mine" if victim.is_file() else not [*victim.iterdir()]


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["CTDataModule"].pop("fingerprint"),
        lambda content: content.__setitem__("callbacks", [1]),
        lambda content: content["callbacks"].__setitem__("Timer", 5),
    ],
)
def test_a_checkpoint_without_its_parts_ends_in_one_line(
    best: Path, tmp_path: Path, damage: Any
) -> None:
    content = torch.load(best, weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(PancsegError, match=r"bad\.ckpt: "):
        open_checkpoint(tmp_path / "bad.ckpt")
