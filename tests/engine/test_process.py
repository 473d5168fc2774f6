"""Process handling of the engine, without an engine."""

import signal
import subprocess
import sys
import time

import psutil

from ureca.engine.process import guard

OWNER = """
import subprocess, sys, time
from ureca.engine.process import guard
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
watch = guard([engine.pid])
print(engine.pid, flush=True)
time.sleep(600)
"""


def ends(pid: int, seconds: float) -> bool:
    """Return True if the process ends within `seconds`; a zombie counts as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_what_is_guarded_ends_with_a_killed_process():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    engine = int(owner.stdout.readline())
    assert not ends(engine, 1.0), "as long as its owner lives"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert ends(engine, 20.0)


def test_a_guard_ends_when_it_is_told_and_takes_nobody_else_along():
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    guard([engine.pid]).communicate()
    assert engine.wait(timeout=20) == -signal.SIGKILL
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
