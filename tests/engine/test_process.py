"""Process handling of the engine, without an engine."""

import signal
import subprocess
import sys
import time

import psutil

from ureca.engine import process
from ureca.engine.process import end_llm, guard

OWNER = """
import subprocess, sys, time
from ureca.engine import process
from ureca.engine.process import end_llm, guard
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


def test_end_llm_leaves_nothing_for_the_destructor(monkeypatch):
    """vLLM's `__del__` shuts down too: when the interpreter exits, vLLM's modules are gone and it fails."""
    shutdowns = []

    class Llm:
        def shutdown(self):
            shutdowns.append(1)

        def __del__(self):
            self.shutdown()

    llm = Llm()
    monkeypatch.setitem(process._guards, id(llm), guard([]))
    end_llm(llm)
    del llm
    assert shutdowns == [1]
