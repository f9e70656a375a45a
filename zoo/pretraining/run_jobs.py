"""Runs a list of trainings over several GPUs.

    python run_jobs.py jobs.txt --devices 1,0,0 --seconds 520

Each line of the list is the arguments of one train.py. There is one worker per entry of --devices,
so a GPU that is named twice runs two trainings at a time; a free worker takes the next line. What
still runs when the time is over is stopped, with what it has saved until then. A training that fails
is named, the others go on, and the exit status is 1.
"""

import argparse
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("jobs", type=Path)
parser.add_argument("--devices", default="0")
parser.add_argument("--seconds", type=float, default=float("inf"))
parser.add_argument("--runs", default="runs")
args = parser.parse_args()

end = time.monotonic() + args.seconds
jobs = [shlex.split(line) for line in args.jobs.read_text().splitlines() if line and not line.startswith("#")]
failed = []
lock = threading.Lock()


def worker(device):
    while True:
        with lock:
            if not jobs or time.monotonic() > end:
                return
            job = jobs.pop(0)
        try:
            status = subprocess.run(
                [sys.executable, Path(__file__).with_name("train.py"), "--runs", args.runs, *job],
                env=os.environ | {"CUDA_VISIBLE_DEVICES": device},
                timeout=max(1, end - time.monotonic()),
            ).returncode
            if status != 0:
                failed.append(job)
                print(f"failed with exit status {status}: {shlex.join(job)}", flush=True)
        except subprocess.TimeoutExpired:
            print(f"stopped: {shlex.join(job)}", flush=True)


workers = [threading.Thread(target=worker, args=(device,)) for device in args.devices.split(",")]
for thread in workers:
    thread.start()
for thread in workers:
    thread.join()
sys.exit(1 if failed else 0)
