"""Settings of the service, the `args:` of `serve_apps/captioner.yaml`; Ray Serve validates them before anything
starts.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

import ureca
from ureca.engine.config import engine_gpus
from ureca.errors import ConfigError
from ureca.proposals.config import ProposalConfig


class _Strict(BaseModel):
    # A misspelled key is refused; `model_` is not a reserved prefix here.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Limits(_Strict):
    """Limits of one request; more is answered with 400 or 413."""

    max_request_bytes: Annotated[int, Field(gt=0)] = 48 * 2**20
    """Maximum body size; images and masks are sent in it as base64."""
    max_image_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Maximum pixels, read from the image's header before decoding."""
    min_image_side_px: Annotated[int, Field(gt=0)] = 8
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 50.0
    max_regions: Annotated[int, Field(gt=0)] = 256
    max_tokens: Annotated[int, Field(gt=0)] = 256
    """Maximum tokens per caption."""
    max_question_chars: Annotated[int, Field(gt=0)] = 1000
    """Maximum characters of a region's question."""
    max_seconds: Annotated[float, Field(gt=0)] = 300
    """Maximum duration of a request; then its captions are canceled and the answer is 503."""


class ImageUrls(_Strict):
    """Fetch images by URL. Disabled by default: requests carry their images."""

    allowed_hosts: tuple[str, ...] = ()
    """Hosts to fetch images from: "images.example.org", or with its subdomains ".example.org". Private and link-local
    addresses are refused even for these hosts."""
    allow_http: bool = False
    """Also allow URLs without TLS."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 10
    """Timeout of one image, redirects included."""
    max_bytes: Annotated[int, Field(gt=0)] = 32 * 2**20
    max_redirects: Annotated[int, Field(ge=0)] = 3


class AccessToken(_Strict):
    """An access token. `ureca token NAME` creates one."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the tenant, in logs; cached images of one tenant serve no other."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the token; the token itself is stored nowhere."""


class Engine(_Strict):
    """One vLLM engine; the fields are keyword arguments of `ureca.engine.engine.CaptionEngine`."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_model_len: Annotated[int | None, Field(gt=0)] = None
    max_num_seqs: Annotated[int, Field(gt=0)] = 64
    tensor_parallel_size: Annotated[int, Field(gt=0)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    vllm_args: dict[str, Any] = {}
    """Further engine arguments of vLLM by name, for example `max_num_batched_tokens: 16384`."""


class Autoscaling(_Strict):
    """Number of captioner replicas, and requests (images) per replica."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    """0 allows scaling to zero; the next request then waits for an engine to start."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 4
    max_ongoing_requests: Annotated[int, Field(gt=0)] = 8
    """Maximum requests in progress per replica; more are queued in the ingress."""
    max_queued_requests: Annotated[int, Field(ge=-1)] = 64
    """Maximum queued requests; beyond that the answer is 503. -1: no limit."""
    upscale_delay_seconds: Annotated[float, Field(ge=0)] = 10
    """Seconds of load above target before a replica is added. Short, because an engine's start takes longer."""
    downscale_delay_seconds: Annotated[float, Field(ge=0)] = 300
    """Seconds of load below target before a replica is removed, so that replicas survive quiet moments."""
    look_back_seconds: Annotated[float, Field(gt=0)] = 10
    """Averaging window of requests in progress, in seconds."""
    metrics_interval_seconds: Annotated[float, Field(gt=0)] = 2
    """Interval between load reports, in seconds."""


class Upkeep(_Strict):
    """Health checks and graceful shutdown of replicas."""

    health_check_seconds: Annotated[float, Field(gt=0)] = 2
    """Interval of health checks. A replica whose process is gone is replaced at once, one whose engine is gone after
    three failed checks in a row."""
    health_check_timeout_seconds: Annotated[float, Field(gt=0)] = 60
    """Timeout of a health check; a busy engine answers late and must not be killed for it."""
    drain_seconds: Annotated[float, Field(ge=0)] = 300
    """Seconds for a stopping replica (new version, fewer replicas, shutdown) to finish its requests before they are
    canceled. With at least `limits.max_seconds`, every request can finish."""


class ServedModel(_Strict):
    """One captioner: its replicas and the resources of each."""

    export: str | None = None
    """Folder of an export written by `jobs/export.py`; None: the packaged nano captioner."""
    num_cpus: Annotated[float, Field(ge=0)] = 1
    """CPUs reserved per replica."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs reserved per replica: as many as share the model, a fraction of one, or 0 for CPUs."""
    engine: Engine = Engine()
    autoscaling: Autoscaling = Autoscaling()

    @model_validator(mode="after")
    def _gpus_fit_the_engine(self) -> Self:
        try:
            needed = engine_gpus(self.engine.tensor_parallel_size, self.engine.vllm_args)
        except ConfigError as error:
            raise ValueError(str(error)) from error  # pydantic reports only these with the key
        if needed > 1 and self.num_gpus != needed:
            raise ValueError(
                f"num_gpus={self.num_gpus:g}, but {needed} GPUs share the model (tensor_parallel_size, "
                f"pipeline_parallel_size): set num_gpus: {needed}"
            )
        if self.num_gpus > 1 and needed == 1:
            raise ValueError(
                f"num_gpus={self.num_gpus:g}, but the engine uses one GPU: set num_gpus: 1 or "
                "engine.tensor_parallel_size"
            )
        return self

    @property
    def export_dir(self) -> Path:
        # Not through ureca.model: the ingress needs no torch.
        return Path(self.export) if self.export else Path(ureca.__file__).parent / "nano" / "weights" / "captioner"


_ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Settings(_Strict):
    """Settings of the application."""

    models: Annotated[dict[_ModelName, ServedModel], Field(min_length=1)] = {"nano_captioner": ServedModel()}
    """Models by name; requests without a name get the first."""
    upkeep: Upkeep = Upkeep()
    limits: Limits = Limits()
    access_tokens: tuple[AccessToken, ...] = ()
    """Access tokens, one of which requests must send (`Authorization: Bearer …`). Without any, requests are not
    authenticated: listen on loopback only."""
    image_urls: ImageUrls = ImageUrls()
    proposals: ProposalConfig = ProposalConfig()
    """Region proposals for images without masks and for points: by color, or a model of the SAM family, which the
    ingress then holds."""
    ingress_num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs for that model; 0: CPU."""


def one_model(export: str | Path | None, **options: Any) -> dict[str, ServedModel]:
    """Return `Settings.models` for one export, named after its folder.

    Args:
        export: folder of the export; None: the captioner in the package, named `nano_captioner`.
        options: fields of `ServedModel`.
    """
    model = ServedModel(export=None if export is None else str(export), **options)
    name = "nano_captioner" if export is None else re.sub(r"[^A-Za-z0-9_.-]", "_", model.export_dir.resolve().name)
    return {name: model}
