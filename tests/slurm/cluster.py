"""A Slurm of one machine: controller, daemon and munge on loopback, without systemd or accounting.

``python -m tests.slurm.cluster FOLDER`` starts one to try by hand, until Ctrl-C.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")
START_S = 30
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
FirstJobId={first_job}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
# as many as the tests ask for at once, whatever the machine has
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=grace Nodes={host} PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF
"""


class NoSlurm(Exception):
    """Slurm cannot be started here: why."""


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start Slurm, yield the environment in which its commands find it, and stop it.

    Raises:
        NoSlurm: If it cannot be started.
    """
    missing = [name for name in PROGRAMS if find(name) is None]
    if missing:
        raise NoSlurm(f"{', '.join(missing)} not installed: make slurm")
    if os.getuid() != 0:
        raise NoSlurm("only root can start it")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    # no number of a cluster that was killed here, whose jobs may still be there
    facts = {"host": host, "ports": free_ports(2), "first_job": 1 + secrets.randbelow(10**6)}
    conf.write_text(CONF.format(**facts, folder=folder))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for words in (munge(folder), ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", host]):
            with (folder / f"{words[0]}.out").open("wb") as out:
                program = [str(find(words[0])), *words[1:]]
                daemons.append(subprocess.Popen(program, env=environment, stdout=out, stderr=out))
            if words[0] == "munged":
                wait_for(folder / "munge" / "socket", folder)
        wait_idle(environment, folder)
        yield environment
        cancel_all(environment)
    finally:
        stop(daemons)


def find(name: str) -> str | None:
    """A program; daemons lie where not every user looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def munge(folder: Path) -> list[str]:
    """The words that start munge with a key and a socket of its own."""
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    files = {"key-file": key}
    for name in ("socket", "pid-file", "log-file", "seed-file"):
        files[name] = folder / "munge" / name.removesuffix("-file")
    options = [f"--{name}={path}" for name, path in files.items()]
    return ["munged", "--foreground", "--force", *options]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_for(path: Path, folder: Path) -> None:
    """Wait for a file."""
    for _ in range(START_S * 10):
        if path.exists():
            return
        time.sleep(0.1)
    raise NoSlurm(f"{path.name} did not appear: {last_words(folder)}")


def wait_idle(environment: dict[str, str], folder: Path) -> None:
    """Wait for the machine to take jobs."""
    for _ in range(START_S * 4):
        asked = ["sinfo", "--noheader", "--format=%t"]
        told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        if told.stdout.split()[:1] == ["idle"]:
            return
        time.sleep(0.25)
    raise NoSlurm(f"the machine took no jobs within {START_S} s: {last_words(folder)}")


def last_words(folder: Path) -> str:
    """The ends of what the daemons said."""
    found = [path.read_text(errors="replace")[-300:] for path in folder.glob("*.out")]
    return " | ".join(" ".join(text.split()) for text in found)


def cancel_all(environment: dict[str, str]) -> None:
    """End every job, and wait for its processes to end."""
    subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    for _ in range(100):
        asked = ["squeue", "--noheader"]
        told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        if not told.stdout.strip():
            return
        time.sleep(0.2)


def stop(daemons: list[subprocess.Popen[bytes]]) -> None:
    """Stop the daemons, the last first; none is left."""
    for one in reversed(daemons):
        one.send_signal(signal.SIGTERM)
        try:
            one.wait(10)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


if __name__ == "__main__":
    with running(Path(sys.argv[1]).absolute()) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopped")
