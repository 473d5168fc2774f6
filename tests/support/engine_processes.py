"""Find the processes of vLLM engines and of corpus jobs' actors on this machine."""

import contextlib

import psutil

from ureca.engine.process import GUARD

_STAGE = "_Stage"
"""Part of the process titles of a corpus job's actors: the class of `ureca.pipeline.ray_data`."""


def stage_processes(below: psutil.Process | None = None) -> list[psutil.Process]:
    """Return actors of corpus jobs among the descendants of `below`; None: descendants of this process."""
    actors = []
    for process in (below or psutil.Process()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = process.cmdline()[:1]
            if title and title[0].startswith("ray::") and _STAGE in title[0]:
                actors.append(process)
    return actors


def engine_processes(below: psutil.Process | None = None) -> list[psutil.Process]:
    """Return running engines that descendants of `below` have started; None: descendants of this process.

    Engines are found by their guards' arguments. The process title that vLLM sets is unreliable: `setproctitle` fails
    if vLLM has changed the first variable of the environment, which differs in every process that Ray starts.
    """
    engines = []
    for guard in (below or psutil.Process()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            arguments, owner = guard.cmdline(), guard.ppid()
            if GUARD not in arguments:
                continue
            for pid in arguments[arguments.index(GUARD) + 1 :]:
                with contextlib.suppress(psutil.Error):
                    engine = psutil.Process(int(pid))
                    if engine.ppid() == owner and engine.status() != psutil.STATUS_ZOMBIE:
                        engines.append(engine)
    return engines
