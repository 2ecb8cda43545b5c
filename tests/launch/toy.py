"""A process for the supervisor's tests: speaks the progress pipe and does what its argument says.

python toy.py BEHAVIOUR PROGRESS_FD DEATH_FD
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from ipc.progress import ProgressWriter


def main(behaviour: str, progress_fd: int, death_fd: int) -> None:
    threading.Thread(target=lambda: os.read(death_fd, 1) or os._exit(9), daemon=True).start()
    progress = ProgressWriter(progress_fd)
    leaving = []
    signal.signal(signal.SIGTERM, lambda *_: leaving.append(1))
    progress.progress("loading", 10)
    print(f"{behaviour} begins", flush=True)
    if behaviour == "error":
        progress.error("no weights here")
        raise SystemExit(2)
    if behaviour == "crash":
        print("about to crash", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "never-ready":
        time.sleep(60)
    if behaviour == "parent":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        progress.ready(f"child {child.pid}")
    else:
        progress.ready(f"toy, cpus {sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []}")
    if behaviour == "once":
        progress.error("a bad day")
        raise SystemExit(3)
    if behaviour == "hang":
        progress.progress("counting sheep", 0.1)
        time.sleep(60)
    if behaviour == "flood":
        for _ in range(2000):
            print("x" * 100)
    while not (leaving and behaviour != "stubborn"):
        progress.progress("work", 0.2)
        time.sleep(0.02)
    print("leaving in order", flush=True)


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
