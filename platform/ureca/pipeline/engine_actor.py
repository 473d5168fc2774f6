"""An engine in an actor's own process: started by the first question, and the process ends with it."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from ureca.engine.process import EngineDiedError
from ureca.pipeline.errors import EndpointLost

logger = logging.getLogger(__name__)

_DIED = 70
"""Exit code of a worker whose engine died (EX_SOFTWARE)."""


class StartedEngine(Protocol):
    """Of it only this is asked here."""

    async def start(self) -> None: ...

    def close(self) -> None: ...


def end_process() -> None:
    """End this process at once. Ray starts it anew, and with it its engine."""
    os._exit(_DIED)


class EngineActor:
    """Starts an engine once, and says what becomes of it in a job's words."""

    def __init__(
        self, engine: StartedEngine, *, model: str, section: str, when_engine_died: Callable[[], None] = end_process
    ) -> None:
        """No engine is started yet.

        Args:
            engine: to start.
            model: its name in errors, e.g. "vllm.model=nano".
            section: of the job's configuration, where a start that fails is to be mended.
            when_engine_died: what happens then. The worker ends with its engine: Ray starts both anew and runs the
                unfinished images again, and finds out those that kill their worker each time.
        """
        self.start_seconds = 0.0
        self._engine, self._model, self._section = engine, model, section
        self._when_engine_died = when_engine_died
        self._starting = asyncio.Lock()
        self._started = False
        self._could_not_start: EndpointLost | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask the engine in the body: it is started first if it was not.

        Raises:
            EndpointLost: it can't be started, or died.
        """
        async with self._starting:
            if self._could_not_start:
                raise self._could_not_start
            if not self._started:
                await self._start()
        try:
            yield
        except EngineDiedError as error:
            logger.error("%s; this worker ends with it", error)
            self._when_engine_died()
            raise EndpointLost(f"{error}; give the same command again") from error

    async def close(self) -> None:
        """End it."""
        self._engine.close()
        await asyncio.sleep(0.1)  # vLLM closes its sockets in tasks of this loop
        self._started = False

    async def _start(self) -> None:
        began = time.monotonic()
        try:
            await self._engine.start()
        except Exception as error:  # whatever vLLM raises: no image is to blame for it
            reason = " ".join(str(error).split())[:300]
            self._could_not_start = EndpointLost(
                f"{self._model}: vLLM could not start it ({type(error).__name__}: {reason}); the worker's "
                f"log says more. Correct {self._section}.* and give the same command again"
            )
            raise self._could_not_start from error
        self.start_seconds = time.monotonic() - began
        self._started = True
