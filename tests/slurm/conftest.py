"""A Slurm of one machine: controller, daemon and munge on loopback, without accounting."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")
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
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=grace Nodes={host} PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF
"""


def until(holds, what):
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < 120, f"did not happen: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Slurm:
    """Slurm's commands, and the environment in which they find it."""

    environment: dict[str, str]

    def __call__(self, *command, script=None):
        ended = subprocess.run(
            command, env=self.environment, input=script, capture_output=True, text=True, check=False
        )
        return ended.stdout.strip()

    def submit(self, *options, script):
        return self("sbatch", "--parsable", *options, script=f"#!/bin/bash\n{script}\n")

    def state(self, job):
        """``RUNNING``, ``PENDING``, ...; empty once it has ended."""
        return self("squeue", "--noheader", "--format=%T", f"--jobs={job}")

    def start_again(self, job, *changes):
        """Start a requeued job at once; Slurm would wait for two minutes."""
        title = f"slurmstepd: [{job}.".encode()

        def is_attended():  # by the daemon, which then does not start it again
            files = Path("/proc").glob("[0-9]*/cmdline")
            return any(path.read_bytes().startswith(title) for path in files if path.exists())

        until(lambda: self.state(job) == "PENDING", f"job {job} waits to run again")
        until(lambda: not is_attended(), f"the daemon is done with job {job}")
        ended_s = int(time.time())  # within this second the daemon refuses it as one it has ended
        until(lambda: int(time.time()) > ended_s, "the next second")
        self("scontrol", "update", f"JobId={job}", "StartTime=now", *changes)
        until(lambda: self.state(job) == "RUNNING", f"job {job} runs again")


def find(name):
    """A program; daemons lie where not every user looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A Slurm for these tests; they are skipped where it cannot be started."""
    if missing := [name for name in PROGRAMS if find(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: make slurm")
    if os.getuid() != 0:
        pytest.skip("only root can start Slurm")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    key, conf, munge = folder / "munge" / "key", folder / "slurm.conf", folder / "munge"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [server.getsockname()[1] for server in bound]
    # no number of a cluster that was killed here, whose jobs may still be there
    first_job = 1 + secrets.randbelow(10**6)
    conf.write_text(CONF.format(host=host, ports=ports, first_job=first_job, folder=folder))
    more = {"SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = Slurm({**os.environ, **more})
    files = {"key-file": key, "socket": munge / "socket", "pid-file": munge / "pid"}
    files |= {"log-file": munge / "log", "seed-file": munge / "seed"}
    options = [f"--{name}={path}" for name, path in files.items()]
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *options],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-N", host],
        ):
            with (folder / f"{command[0]}.out").open("wb") as out:
                program = [str(find(command[0])), *command[1:]]
                process = subprocess.Popen(program, env=found.environment, stdout=out, stderr=out)
                daemons.append(process)
            until((munge / "socket").exists, "munge listens")
        until(lambda: found("sinfo", "--noheader", "--format=%t")[:4] == "idle", "it takes jobs")
        yield found
        found("scancel", "--user=root")
        until(lambda: not found("squeue", "--noheader"), "all jobs end")
    finally:
        for process in reversed(daemons):
            process.terminate()
            process.wait()
