"""vLLM's engines among the processes of this machine."""

import contextlib

import psutil

from ureca.engine.process import GUARD


def engine_processes(below: psutil.Process | None = None) -> list[psutil.Process]:
    """Those that processes below this one (None: the caller's) have started and that still run.

    Read from the engines' guards. The title that vLLM gives an engine is not always there: `setproctitle` can't write
    it where vLLM has changed the variable that happens to come first in the environment, and that is another one in
    every process that Ray starts.
    """
    found = []
    for guard in (below or psutil.Process()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            arguments, owner = guard.cmdline(), guard.ppid()
            if GUARD not in arguments:
                continue
            for pid in arguments[arguments.index(GUARD) + 1 :]:
                with contextlib.suppress(psutil.Error):
                    engine = psutil.Process(int(pid))
                    if engine.ppid() == owner and engine.status() != psutil.STATUS_ZOMBIE:
                        found.append(engine)
    return found
