"""No command asks for anything outside the machine it runs on, nor does any test of them."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PHANTOM, run_command, smoke
from tests.no_network import ASKED

NAMESPACE = ["unshare", "--net", "--map-root-user"]
TESTS = str(Path(__file__).parents[1])


def can_unshare() -> bool:
    tool = shutil.which("unshare")
    return bool(tool) and not subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode


alone = pytest.mark.skipif(
    not can_unshare(), reason="no namespace without a network to be had here"
)


def counted() -> dict[str, int]:
    """What the kernel saw go out in this namespace, by whatever program."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    table = {
        f"{names[0]}{name}": int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }
    wanted = ("Ip:OutNoRoutes", "Ip:OutRequests", "Tcp:ActiveOpens", "Udp:OutDatagrams")
    return {name: table[name] for name in wanted}


def the_demo(folder: Path) -> None:
    """Every command once; other processes prepare, and load batches."""
    data, run = folder / "prepared", folder / "run"
    source = [
        f"source.images={folder / 'dicom'}/images",
        f"source.labels={folder / 'dicom'}/labels",
    ]
    words = ["data.depth=32", "data.tail=shift", "processes=2"]
    best = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    assert run_command("phantom", f"out={folder / 'dicom'}", "patients=6", *PHANTOM) == 0
    assert run_command("prepare", *source, f"data.root={data}", *words) == 0
    patches = ["sampling=patches", "sampling.steps_per_epoch=2"]
    assert run_command("train", *smoke(data, run, *patches), "hardware.num_workers=1") == 0
    assert run_command("evaluate", best, "subset=test") == 0
    images = folder / "dicom" / "images"
    one = min(path for path in images.iterdir() if path.is_dir())
    assert run_command("predict", best, f"input={one}", f"output={folder / 'masks'}") == 0
    assert run_command("report", f"run={run}") == 0
    assert run_command("export", best, f"output={folder / 'bundle'}") == 0


def main(folder: Path, demo: bool) -> None:
    """What runs in the namespace: the demo, or something that does ask; conftest.py listens."""
    import warnings

    warnings.simplefilter("ignore")
    before = counted()
    if demo:
        the_demo(folder)
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.connect_ex(("192.0.2.1", 53))
    after = counted()
    sent = {name: after[name] - before[name] for name in before}
    (folder / "asked.json").write_text(json.dumps({"asked": ASKED, "sent": sent}))


def in_a_namespace(folder: Path, kind: str) -> dict[str, object]:
    """Run :func:`main` where there is no network at all."""
    code = "import sys; from pathlib import Path; from tests.test_no_network import main; "
    code += "main(Path(sys.argv[1]), sys.argv[2] == 'demo')"
    here = [sys.executable, "-c", code, str(folder), kind]
    subprocess.run([*NAMESPACE, *here], check=True, cwd=TESTS, capture_output=True, timeout=300)
    return json.loads((folder / "asked.json").read_text())  # type: ignore[no-any-return]


@alone
@pytest.mark.slow
def test_the_demo_runs_without_a_network_and_does_not_look_for_one(tmp_path: Path) -> None:
    told = in_a_namespace(tmp_path, "demo")
    assert told["asked"] == []
    assert set(told["sent"].values()) == {0}  # type: ignore[attr-defined]
    assert (tmp_path / "bundle" / "models" / "model.pt").is_file()
    assert list((tmp_path / "masks").glob("*_pancreas.dcm"))


@alone
def test_what_asks_for_another_machine_is_noticed_twice(tmp_path: Path) -> None:
    told = in_a_namespace(tmp_path, "ask")
    assert told["asked"] == ["socket.connect 192.0.2.1"]
    assert told["sent"]["Ip:OutNoRoutes"] == 1  # type: ignore[index]


def test_a_name_or_an_address_that_is_asked_for_is_noticed() -> None:
    before = len(ASKED)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("nowhere.invalid", 443)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect_ex(("127.0.0.1", 9))
    assert ASKED[before:] == ["socket.getaddrinfo nowhere.invalid"]
    del ASKED[before:]
