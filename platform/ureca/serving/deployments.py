"""The application on Ray Serve: `build(settings)`.

Ingress     FastAPI; needs neither torch nor a GPU
Captioner   one CaptionEngine; autoscaled, chosen by the image's digest, so that all calls for one image meet
            the KV cache of its prefix (it falls over to other replicas when one is full)
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from ureca.engine.caption import Caption
from ureca.engine.start import EngineDiedError
from ureca.errors import InputError
from ureca.regions.rle import Rle
from ureca.serving.api import create_app
from ureca.serving.calls import CaptionCall, OverloadedError, UnavailableError
from ureca.serving.settings import Settings

__all__ = ["build"]

# One setting to change if this experimental class moves.
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_HEALTH_TIMEOUT_SECONDS = 10.0


class CaptionerReplica:
    """A CaptionEngine as a Serve deployment."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        from ureca.engine import CaptionEngine

        options = settings.engine
        self._engine = CaptionEngine(
            settings.export_dir,
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            tensor_parallel_size=options.tensor_parallel_size,
            gpu_memory_utilization=options.gpu_memory_utilization,
        )
        await self._engine.start()

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises; its default pings the process around the engine."""
        await self._engine.check_health()

    async def caption(self, call: CaptionCall) -> list[Caption]:
        return await self._engine.caption(*self._asked(call), **_options(call))

    async def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, str | Caption]]:
        stream = self._engine.stream(*self._asked(call), **_options(call))
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()

    def _asked(self, call: CaptionCall) -> tuple[Any, list[Rle], list[str]]:
        query = self._engine.prompts.processor.query
        return (
            call.image,
            [region.segmentation for region in call.regions],
            [region.question or query(region.style) for region in call.regions],
        )


def _options(call: CaptionCall) -> dict[str, Any]:
    # Guessing a digest from how fast an answer comes would tell one tenant what another has sent.
    return {**dataclasses.asdict(call.sampling), "cache_salt": call.tenant or None}


class ServeBackend:
    """The captioner's replicas, as the API sees them."""

    def __init__(self, captioner: DeploymentHandle) -> None:
        self._captioner = captioner

    async def caption(self, call: CaptionCall) -> list[Caption]:
        response = self._captioner.options(session_id=call.digest).caption.remote(call)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # Serve does it where the caller has left, but not past our own time limit
            raise
        except Exception as error:
            raise _translated(error) from error

    async def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, str | Caption]]:
        handle = self._captioner.options(session_id=call.digest, stream=True)
        events: Any = handle.stream.remote(call)
        try:
            async for event in events:
                yield event
        except Exception as error:
            raise _translated(error) from error
        finally:
            events.cancel()

    async def check_health(self) -> None:
        try:
            await asyncio.wait_for(self._captioner.check_health.remote(), _HEALTH_TIMEOUT_SECONDS)
        except Exception as error:
            raise UnavailableError("its engine is starting, or was lost and is being replaced") from error


def _translated(error: Exception) -> Exception:
    """What the API knows of an error from a replica."""
    if isinstance(error, BackPressureError):
        return OverloadedError()
    if isinstance(error, RayActorError | DeploymentUnavailableError):
        return UnavailableError("its replica was lost and is being replaced")
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, InputError):
        return cause
    if isinstance(cause, EngineDiedError):
        return UnavailableError("its engine was lost and is being replaced")
    return error


@serve.ingress()
class Ingress:
    """The API as a Serve deployment."""

    def __init__(self, captioner: DeploymentHandle, settings: Settings) -> None:
        self._backend = ServeBackend(captioner)
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Any:
        settings = self._settings
        return create_app(
            self._backend,
            model_name=settings.model_name,
            limits=settings.limits,
            access_tokens=settings.access_tokens,
            image_urls=settings.image_urls,
        )


def build(settings: Settings) -> serve.Application:
    """The application that `serve_apps/captioner.yaml` names; `args:` there are the settings.

    Raises:
        CheckpointError: `model` is no export.
    """
    from ureca.model.captioner import CaptionerConfig

    CaptionerConfig.load(settings.export_dir)  # said here in one line, not in a replica's log over and over
    if settings.model is not None:  # replicas may have another working directory
        settings = settings.model_copy(update={"model": str(settings.export_dir.resolve())})
    scaling = settings.autoscaling
    deployment: Any = serve.deployment  # its type covers only the decorator
    router: Any = {"request_router_class": ROUTER}
    captioner = deployment(CaptionerReplica).options(
        name="Captioner",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
            upscale_delay_s=scaling.upscale_delay_seconds,
            downscale_delay_s=scaling.downscale_delay_seconds,
            look_back_period_s=scaling.look_back_seconds,
            metrics_interval_s=scaling.metrics_interval_seconds,
        ),
        max_ongoing_requests=scaling.max_ongoing_requests,
        max_queued_requests=scaling.max_queued_requests,
        request_router_config=RequestRouterConfig(**router),
        **_upkeep(settings),
    )
    ingress = deployment(Ingress).options(
        name="Ingress", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=200, **_upkeep(settings)
    )
    return ingress.bind(captioner.bind(settings), settings)


def _upkeep(settings: Settings) -> dict[str, float]:
    return {
        "health_check_period_s": settings.upkeep.health_check_seconds,
        "health_check_timeout_s": settings.upkeep.health_check_timeout_seconds,
        "graceful_shutdown_timeout_s": settings.upkeep.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,  # an idle replica waits so long too
    }
