"""An engine in an actor's own process: started by the first request; the process ends with its engine."""

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

_EXIT_CODE = 70
"""Exit code of a worker whose engine died (EX_SOFTWARE)."""


class StartedEngine(Protocol):
    """The part of an engine that this module uses."""

    async def start(self) -> None: ...

    def close(self) -> None: ...


def end_process() -> None:
    """End this process at once. Ray restarts it, and with it the engine."""
    os._exit(_EXIT_CODE)


class EngineActor:
    """Starts an engine once and translates its failures into job errors."""

    def __init__(
        self, engine: StartedEngine, *, model: str, section: str, on_engine_death: Callable[[], None] = end_process
    ) -> None:
        """Store the engine without starting it.

        Args:
            engine: engine to start.
            model: its name in errors, e.g. "vllm.model=nano".
            section: section of the job's configuration to correct after a failed start.
            on_engine_death: called when the engine died. The worker ends with its engine: Ray restarts both, runs the
                unfinished images again, and identifies those that crash their worker each time.
        """
        self.start_seconds = 0.0
        self._engine, self._model, self._section = engine, model, section
        self._on_engine_death = on_engine_death
        self._starting = asyncio.Lock()
        self._started = False
        self._start_error: EndpointLost | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Provide the running engine to the body; start it first if necessary.

        Raises:
            EndpointLost: the engine can't start, or died.
        """
        async with self._starting:
            if self._start_error:
                raise self._start_error
            if not self._started:
                await self._start()
        try:
            yield
        except EngineDiedError as error:
            logger.error("%s; this worker ends with its engine", error)
            self._on_engine_death()
            raise EndpointLost(f"{error}; run the same command again") from error

    async def close(self) -> None:
        """End the engine."""
        self._engine.close()
        await asyncio.sleep(0.1)  # vLLM closes its sockets in tasks of this loop
        self._started = False

    async def _start(self) -> None:
        started_at = time.monotonic()
        try:
            await self._engine.start()
        except Exception as error:  # any vLLM error: no image is at fault
            reason = " ".join(str(error).split())[:300]
            self._start_error = EndpointLost(
                f"{self._model}: vLLM could not start ({type(error).__name__}: {reason}); the worker's log has "
                f"details. Correct {self._section}.* and run the same command again"
            )
            raise self._start_error from error
        self.start_seconds = time.monotonic() - started_at
        self._started = True
