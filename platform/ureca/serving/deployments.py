"""The application on Ray Serve: `build(settings)`.

Ingress     FastAPI; needs neither torch nor a GPU
Captioner   one CaptionEngine; one autoscaled deployment per model. Replicas are chosen by image digest, so all calls
            for one image find the KV cache of its prefix (a full replica's calls go to others)

Any change of the settings replaces all replicas: Serve has one version for the entire application.
"""

import asyncio
import dataclasses
import logging
import math
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from ureca.engine.process import EngineDiedError
from ureca.engine.results import Caption, Event, RegionFault, collect_captions
from ureca.errors import InputError
from ureca.proposals.proposer import make_proposer
from ureca.regions.rle import Rle
from ureca.serving.api.app import create_app
from ureca.serving.api.backend import CaptionCall, OverloadedError, UnavailableError
from ureca.serving.api.stream_batching import batch_stream
from ureca.serving.metrics import EngineMeter, RayRecorder
from ureca.serving.middleware.access_log import log_access_to_stdout
from ureca.serving.middleware.drain import Drain
from ureca.serving.settings import ServedModel, Settings

logger = logging.getLogger(__name__)

# The only setting to change if this experimental class moves.
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_HEALTH_TIMEOUT_SECONDS = 10.0
_HEALTH_KNOWN_SECONDS = 1.0
"""Cache time of health answers: anybody may ask without a token."""
# Extra replicas, in percent and at least one, while a new version is deployed: an old replica runs until a new one is
# ready. Serve's default of none stops an old replica first, and requests wait for an engine's start.
_SURGE_PERCENT = 20
_INGRESS_REQUESTS = 200
"""Requests in progress in the ingress, and as many queued in the proxy; beyond that the proxy answers 503."""


class CaptionerReplica:
    """A CaptionEngine as a Serve deployment."""

    async def __init__(self, name: str, model: ServedModel) -> None:  # type: ignore[misc]  # Serve awaits it
        from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

        from ureca.engine.engine import CaptionEngine

        self._meter = EngineMeter(RayRecorder(), name)
        self._engine = CaptionEngine(
            model.export_dir,
            **model.engine.model_dump(),
            name=name,
            stat_loggers=[RayPrometheusStatLogger],
            on_masks_encoded=self._meter.masks_encoded,
        )
        await self._engine.start()
        self._closing = False
        self._watch = asyncio.create_task(self._end_with_the_engine())
        self._reporting = asyncio.create_task(self._meter.keep_reporting())

    async def check_health(self) -> None:
        """Check the engine. Serve replaces the replica when this raises; its default check only pings the process."""
        await self._engine.check_health()

    async def _end_with_the_engine(self) -> None:
        """End this process once its engine is gone.

        Serve's controller needs three failed checks to replace a replica, on a busy machine a minute, during which the
        ingress would send it requests. The ingress notices a dead process at once: requests then wait for the next
        replica.
        """
        while True:
            await asyncio.sleep(0.5)
            try:
                await self._engine.check_health()
            except Exception:
                if self._closing:
                    return
                logger.exception("the engine is gone; this replica ends with it")
                os._exit(1)

    async def caption(self, call: CaptionCall) -> list[Caption | RegionFault]:
        return await collect_captions(self._events(call))

    async def stream(self, call: CaptionCall) -> AsyncGenerator[list[tuple[int, Event]]]:
        async with aclosing(batch_stream(self._events(call))) as events_together:
            async for events in events_together:
                yield events

    def __del__(self) -> None:
        self._closing = True
        if hasattr(self, "_engine"):
            self._engine.close()

    def _events(self, call: CaptionCall) -> AsyncGenerator[tuple[int, Event]]:
        events = self._engine.stream(*self._asked(call), **_options(call))
        return self._meter.measure(events, len(call.regions))

    def _asked(self, call: CaptionCall) -> tuple[Any, list[Rle], list[str]]:
        query = self._engine.prompts.processor.query
        return (
            call.image,
            [region.segmentation for region in call.regions],
            [region.question or query(region.style) for region in call.regions],
        )


def _options(call: CaptionCall) -> dict[str, Any]:
    # Without a salt, response times would reveal to one tenant which images another has sent.
    return {**dataclasses.asdict(call.sampling), "cache_salt": call.tenant or None, "faults_in_place": True}


class ServeBackend:
    """A captioner's replicas, as the API sees them."""

    def __init__(self, captioner: DeploymentHandle) -> None:
        self._captioner = captioner
        self._ready, self._ready_at = False, -math.inf
        self._looking = asyncio.Lock()

    async def caption(self, call: CaptionCall) -> list[Caption | RegionFault]:
        response = self._captioner.options(session_id=call.digest).caption.remote(call)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # Serve cancels when the caller leaves, but not at our own time limit
            raise
        except Exception as error:
            raise _translated(error) from error

    async def stream(self, call: CaptionCall) -> AsyncGenerator[tuple[int, Event]]:
        handle = self._captioner.options(session_id=call.digest, stream=True)
        response: Any = handle.stream.remote(call)
        try:
            async for events in response:
                for event in events:
                    yield event
        except Exception as error:
            raise _translated(error) from error
        finally:
            response.cancel()

    async def check_health(self) -> None:
        """Check that a replica with a live engine exists, as known to Serve's controller, which asks each every few
        seconds.

        Replicas are not asked directly: if all are busy, the check would wait in their queue as if none existed.
        """
        async with self._looking:
            if time.monotonic() > self._ready_at + _HEALTH_KNOWN_SECONDS:
                self._ready, self._ready_at = await self._has_replicas(), time.monotonic()
        if not self._ready:
            raise UnavailableError("its engine is starting, or was lost and is being replaced")

    async def _has_replicas(self) -> bool:
        name, application = self._captioner.deployment_name, self._captioner.app_name
        try:
            status = await asyncio.wait_for(asyncio.to_thread(serve.status), _HEALTH_TIMEOUT_SECONDS)
            deployment = status.applications[application].deployments[name]
        except (KeyError, TimeoutError, RayError):
            return False
        asleep = deployment.status == "HEALTHY" and not deployment.replica_states  # min_replicas is 0
        return asleep or any(state == "RUNNING" for state in deployment.replica_states)


def _translated(error: Exception) -> Exception:
    """Translate an error of a replica into one the API knows."""
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

    def __init__(self, captioners: dict[str, DeploymentHandle], settings: Settings) -> None:
        self._backends = {name: ServeBackend(captioner) for name, captioner in captioners.items()}
        self._settings = settings
        self._drain = Drain()
        log_access_to_stdout()

    async def drain(self) -> None:
        """Refuse new requests, and return when those in progress have finished. Only then may the service end."""
        await self._drain.wait()

    def __serve_build_asgi_app__(self) -> Any:
        settings = self._settings
        return create_app(
            self._backends,
            limits=settings.limits,
            access_tokens=settings.access_tokens,
            image_urls=settings.image_urls,
            proposer=make_proposer(settings.proposals),
            recorder=RayRecorder(),
            proxy_answers_id=True,
            drain=self._drain,
        )


def build(settings: Settings) -> serve.Application:
    """Build the application that `serve_apps/captioner.yaml` names; `args:` there are the settings.

    Raises:
        CheckpointError: an `export` is not an export.
    """
    from ureca.model.captioner import CaptionerConfig

    for model in settings.models.values():
        CaptionerConfig.load(model.export_dir)  # fail here with one line instead of repeatedly in a replica's log
    upkeep = _upkeep(settings)
    deployment: Any = serve.deployment  # its type covers only the decorator
    ingress = deployment(Ingress).options(
        name="Ingress",
        ray_actor_options={"num_cpus": 0.1, "num_gpus": settings.ingress_num_gpus},
        max_ongoing_requests=_INGRESS_REQUESTS,
        max_queued_requests=_INGRESS_REQUESTS,
        **upkeep,
    )
    captioners = {name: _captioner(name, model, upkeep) for name, model in settings.models.items()}
    return ingress.bind(captioners, settings)


def _captioner(name: str, model: ServedModel, upkeep: dict[str, float]) -> serve.Application:
    if model.export is not None:  # replicas may have another working directory
        model = model.model_copy(update={"export": str(model.export_dir.resolve())})
    scaling = model.autoscaling
    deployment: Any = serve.deployment
    captioner = deployment(CaptionerReplica).options(
        name=f"Captioner-{name}",
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
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
        request_router_config=router_by_image(scaling.max_replicas),
        **upkeep,
    )
    return captioner.bind(name, model)


def router_by_image(max_replicas: int) -> RequestRouterConfig:
    """Route calls with the same `session_id` (an image's digest) to one replica; while it is full, to any free one."""
    router: Any = {
        "request_router_class": ROUTER,
        "request_router_kwargs": {"num_fallback_replicas": max(2, max_replicas - 1)},
    }
    return RequestRouterConfig(**router)


def _upkeep(settings: Settings) -> dict[str, float]:
    return {
        "health_check_period_s": settings.upkeep.health_check_seconds,
        "health_check_timeout_s": settings.upkeep.health_check_timeout_seconds,
        "graceful_shutdown_timeout_s": settings.upkeep.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,  # an idle replica waits this long too
        "max_surge_percent": _SURGE_PERCENT,
    }
