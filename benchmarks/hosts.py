"""Lose a whole host of a Ray cluster during a run on shards: labels stay equal, only lost tasks are redone.

    python benchmarks/hosts.py --features F --out DIR [--stages exact second-0 modules-0] [--ray-defaults] [--json OUT]

Three hosts are network namespaces of this machine, so this needs root and Linux: the first has the head of the cluster
and the command, the others one processor each. For each stage there is a new cluster and a new store. When the first
task of the stage has finished, the second worker host is lost: its network goes down, so that nothing says goodbye, and
all its processes are killed. ``again`` are the tasks that were started again, ``redone`` the finished tasks that were
run once more (there should be none), and ``labels`` says whether the labels are those of a run in memory.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import report

HOSTS, BRIDGE, NET, PORT = ("starfc-0", "starfc-1", "starfc-2"), "starfc-br", "10.213.0", 6379


CURRENT = Path("/tmp/ray/ray_current_cluster")  # where other programs would look for this cluster
# a token of this cluster alone, for Ray's token authentication
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
# Ray asks hosts that answer nothing after 5 minutes whether they are there, and gives up 2 minutes later
PATIENCE = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "10000"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, metavar="F")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--stages", nargs="+", default=["exact", "second-0", "modules-0"])
    parser.add_argument("--shard-rows", type=int, default=1024)
    parser.add_argument("--ray-defaults", action="store_true", help="do not shorten the times after which Ray gives up")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if not arguments.ray_defaults:
        ENVIRONMENT.update(PATIENCE)
    shutil.rmtree(arguments.out, ignore_errors=True)
    cluster = [sys.executable, "-m", "starfc", "cluster", str(arguments.features), "--no-edges", "--threads", "1"]
    subprocess.run([*cluster, "-o", str(arguments.out / "memory"), "-q"], check=True)
    runs = []
    for stage in (None, *arguments.stages):
        runs.append(run(arguments, cluster, stage))
        print(runs[-1], flush=True)
    report({"runs": runs}, 1, arguments.json)


def run(arguments: argparse.Namespace, cluster: list[str], stage: str | None) -> dict[str, Any]:
    """Run on three hosts, and lose one when the first task of a stage has finished (None: lose none)."""
    name = stage or "none"
    store = arguments.out / f"{name}.store"
    with hosts() as processes:
        command = [*cluster, "-o", str(arguments.out / name), "--engine", "ray", "--address", f"{NET}.1:{PORT}"]
        command += ["--store", str(store), "--shard-rows", str(arguments.shard_rows)]
        started, lost = time.perf_counter(), 0.0
        driver = subprocess.Popen(inside(HOSTS[0], command), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        before: dict[Path, int] = {}
        if stage is not None:
            while not list(store.glob(f"{stage}/0*.json")):
                if driver.poll() is not None:
                    raise SystemExit(f"the run ended before {stage}: {driver.communicate()[1]}")
                time.sleep(0.01)
            lose(HOSTS[2], processes[HOSTS[2]])
            before = {path: path.stat().st_mtime_ns for path in store.glob("*/0*.json")}
            lost = time.perf_counter() - started
        _, messages = driver.communicate()
        seconds = time.perf_counter() - started
    if driver.returncode:
        raise SystemExit(messages)
    finished = [path for path in before if "-given" not in str(path)]
    return {
        "lost_in": stage,
        "lost_after": round(lost, 1),
        "seconds": round(seconds, 1),
        "tasks": len([path for path in store.glob("*/0*.json") if "-given" not in str(path)]),
        "again": re.findall(r"(\S+): its worker died; it starts again", messages),
        "redone": [str(path.relative_to(store)) for path in finished if path.stat().st_mtime_ns != before[path]],
        "labels": same(arguments.out / name / "labels.npy", arguments.out / "memory" / "labels.npy"),
    }


def same(one: Path, other: Path) -> str:
    return "equal" if one.read_bytes() == other.read_bytes() else "differ"


@contextmanager
def hosts() -> Iterator[dict[str, list[subprocess.Popen]]]:
    """Yield the processes of each host of a new cluster; remove all at the end."""
    remove_network()
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("link", "set", BRIDGE, "up")
    processes: dict[str, list[subprocess.Popen]] = {}
    try:
        for number, host in enumerate(HOSTS):
            ip("netns", "add", host)
            ip("link", "add", f"{host}-o", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("link", "set", f"{host}-o", "master", BRIDGE, "up")
            ip("-n", host, "address", "add", f"{NET}.{number + 1}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", host, "link", "set", link, "up")
        for number, host in enumerate(HOSTS):
            place = [f"--node-ip-address={NET}.{number + 1}", "--block", "--disable-usage-stats"]
            head = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
            more = head if number == 0 else [f"--address={NET}.1:{PORT}", "--num-cpus=1"]
            ray = [str(Path(sys.executable).with_name("ray")), "start", *place, *more]
            # each host has shared memory of its own
            private = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh", *ray]
            process = subprocess.Popen(
                inside(host, private), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                env=ENVIRONMENT,
            )  # fmt: skip
            processes[host] = [process]
            wait_for(number)  # hosts that start at the same time disturb each other in their common folder
        yield processes
    finally:
        CURRENT.unlink(missing_ok=True)
        for host in HOSTS:
            kill(host)
        for of_host in processes.values():
            for process in of_host:
                process.wait()
        remove_network()


def wait_for(workers: int) -> None:
    """Wait until the cluster has this number of workers."""
    count = f"print(int((ray.init('{NET}.1:{PORT}', log_to_driver=False), ray.cluster_resources())[1].get('CPU', 0)))"
    for _ in range(60):
        command = inside(HOSTS[0], [sys.executable, "-c", f"import ray; {count}"])
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if done.stdout.strip().endswith(str(workers)):
            return
        time.sleep(1)
    raise SystemExit(f"the cluster did not start: {done.stderr[-2000:]}")


def lose(host: str, processes: list[subprocess.Popen]) -> None:
    """Lose a host: its network goes down, then all its processes are killed."""
    ip("link", "set", f"{host}-o", "down")
    kill(host)
    for process in processes:
        process.wait()


def kill(host: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False).stdout.split()
    for process in found:
        try:
            os.kill(int(process), signal.SIGKILL)
        except ProcessLookupError:
            pass


def remove_network() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "delete", host], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "link", "delete", f"{host}-o"], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], stderr=subprocess.DEVNULL, check=False)


def inside(host: str, command: list[str]) -> list[str]:
    return ["ip", "netns", "exec", host, *command]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    main()
