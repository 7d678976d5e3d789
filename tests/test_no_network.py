"""No command sends anything to another machine."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OUTSIDE, PHANTOM, prepare, run_command, smoke

NAMESPACE = ["unshare", "--net", "--map-root-user"]
CODE = "import sys; from tests.test_no_network import main; main(sys.argv[1])"
can_unshare = shutil.which("unshare") and not subprocess.call([*NAMESPACE, "true"], stderr=-3)


def packets_sent():
    """Packets that the kernel sent or had no route for, of any program in this namespace."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    counts = dict(zip(names, values, strict=True))
    return int(counts["OutRequests"]) + int(counts["OutNoRoutes"])


def main(folder):
    """Run each command once with worker processes, then send a packet."""
    out = Path(folder)
    data, run, masks, bundle = (out / name for name in ("prepared", "run", "masks", "bundle"))
    best = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    words = ["sampling=patches", "sampling.steps_per_epoch=2", "hardware.num_workers=1"]
    scan = f"input={out}/dicom/images/phantom-3-000"
    codes = [
        run_command("phantom", f"out={out / 'dicom'}", "patients=6", *PHANTOM),
        prepare(out / "dicom", data, "processes=2"),
        run_command("train", *smoke(data, run, *words)),
        run_command("evaluate", best, "subset=test"),
        run_command("predict", best, scan, f"output={masks}"),
        run_command("report", f"run={run}"),
        run_command("export", best, f"output={bundle}"),
    ]
    sent, asked = packets_sent(), OUTSIDE[:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect_ex(("192.0.2.1", 53))
    result = {"codes": codes, "sent": [sent, packets_sent()], "asked": [asked, OUTSIDE]}
    (out / "result.json").write_text(json.dumps(result))


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare, reason="no namespace without a network to be had here")
def test_no_command_sends_a_packet(tmp_path):
    words = [*NAMESPACE, sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path)]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[1], capture_output=True)
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "codes": [0] * 7, "sent": [0, 1], "asked": [[], ["192.0.2.1"]]
    }  # fmt: skip


def test_a_request_to_another_machine_is_noticed_in_any_test():
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("nowhere.invalid", 443)
    socket.getaddrinfo("127.0.0.1", 9)
    assert OUTSIDE == ["nowhere.invalid"]
    OUTSIDE.clear()
