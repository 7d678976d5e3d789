"""No command sends anything to another machine."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OUTSIDE, PHANTOM, SHALLOW, run_command, smoke

NAMESPACE = ["unshare", "--net", "--map-root-user"]
CODE = "import sys; from tests.test_no_network import main; main(sys.argv[1])"
can_unshare = shutil.which("unshare") and not subprocess.call([*NAMESPACE, "true"], stderr=-3)


def packets_sent():
    """Packets that the kernel sent or had no route for, of any program in this namespace."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    counts = dict(zip(names, values, strict=True))
    return int(counts["OutRequests"]) + int(counts["OutNoRoutes"])


def run_all(scans, out):
    """Run each command once, with worker processes."""
    run = out / "run"
    best = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    source = [f"source.{role}={scans / role}" for role in ("images", "labels")]
    patches = ["sampling=patches", "sampling.steps_per_epoch=2", "hardware.num_workers=1"]
    scan = min((scans / "images").iterdir())
    for name, *words in (
        ("prepare", *source, f"data.root={out / 'root'}", *SHALLOW, "processes=2"),
        ("train", *smoke(out / "root", run, *patches)),
        ("evaluate", best, "subset=test"),
        ("predict", best, f"input={scan}", f"output={out / 'masks'}"),
        ("report", f"run={run}"),
        ("export", best, f"output={out / 'bundle'}"),
    ):
        assert run_command(name, *words) == 0


def main(folder):
    """Run each command, then send a packet."""
    scans = Path(folder) / "scans"
    assert run_command("phantom", f"out={scans}", "patients=6", *PHANTOM) == 0
    run_all(scans, Path(folder) / "out")
    sent, asked = packets_sent(), OUTSIDE[:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect_ex(("192.0.2.1", 53))
    result = {"sent": [sent, packets_sent()], "asked": [asked, OUTSIDE]}
    (Path(folder) / "result.json").write_text(json.dumps(result))


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare, reason="no namespace without a network to be had here")
def test_no_command_sends_a_packet(tmp_path):
    words = [*NAMESPACE, sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path)]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[1])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"sent": [0, 1], "asked": [[], ["192.0.2.1"]]}
