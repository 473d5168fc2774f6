"""What `serve_apps/captioner.yaml` may say under `args:`; Ray Serve checks it before anything starts."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

import ureca
from ureca.proposals.config import ProposalConfig


class _Strict(BaseModel):
    # A misspelled key is refused, not ignored; `model_` is no reserved beginning here.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Limits(_Strict):
    """What one request may ask for; more is answered with 400 or 413."""

    max_request_bytes: Annotated[int, Field(gt=0)] = 48 * 2**20
    """Of the body; images and masks travel in it as base64."""
    max_image_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Read from the image's header, before it is decoded."""
    min_image_side_px: Annotated[int, Field(gt=0)] = 8
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 50.0
    max_regions: Annotated[int, Field(gt=0)] = 256
    max_tokens: Annotated[int, Field(gt=0)] = 256
    """Of one caption."""
    max_question_chars: Annotated[int, Field(gt=0)] = 1000
    """Of a region's own question."""
    max_seconds: Annotated[float, Field(gt=0)] = 300
    """For one request; after that its captions are given up and the answer is 503."""


class ImageUrls(_Strict):
    """Images that are fetched for a request. As it is, none: requests hold their images."""

    allowed_hosts: tuple[str, ...] = ()
    """Hosts whose images may be fetched, by name: "images.example.org", or with its subdomains ".example.org".
    Private and link-local addresses are refused even if a host of this list has one."""
    allow_http: bool = False
    """Without TLS too."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 10
    """For one image, redirects included."""
    max_bytes: Annotated[int, Field(gt=0)] = 32 * 2**20
    max_redirects: Annotated[int, Field(ge=0)] = 3


class AccessToken(_Strict):
    """Who may ask. `ureca token NAME` makes one."""

    name: Annotated[str, Field(min_length=1)]
    """The tenant, in logs; what the engine keeps of one tenant's images serves no other."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the token: the token itself stands nowhere."""


class Engine(_Strict):
    """One vLLM engine; see `ureca.engine.CaptionEngine`."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_model_len: Annotated[int | None, Field(gt=0)] = None
    max_num_seqs: Annotated[int, Field(gt=0)] = 64
    tensor_parallel_size: Annotated[int, Field(gt=0)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9


class Autoscaling(_Strict):
    """Replicas of the captioner: how many, and how many requests (images) each should have at a time."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    """0 lets the service fall asleep; the next request then waits for an engine to start."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 4
    max_ongoing_requests: Annotated[int, Field(gt=0)] = 8
    """A replica takes no more at a time; the rest queues in the ingress."""
    max_queued_requests: Annotated[int, Field(ge=-1)] = 64
    """Beyond these the answer is 503; -1: no limit."""
    upscale_delay_seconds: Annotated[float, Field(ge=0)] = 10
    """So long there must have been more to do than the replicas' target before another one starts. A short wait: an
    engine's own start takes longer."""
    downscale_delay_seconds: Annotated[float, Field(ge=0)] = 300
    """The same before one is given up: what was started for a busy minute stays for the next one."""
    look_back_seconds: Annotated[float, Field(gt=0)] = 10
    """Requests in progress are averaged over so long."""
    metrics_interval_seconds: Annotated[float, Field(gt=0)] = 2
    """They are counted so often."""


class Upkeep(_Strict):
    """How a replica's end is noticed, and how it is awaited where it is wanted."""

    health_check_seconds: Annotated[float, Field(gt=0)] = 2
    """Each replica is asked so often. One whose process is gone is replaced at once, one whose engine is gone after
    three answers in a row that say so."""
    health_check_timeout_seconds: Annotated[float, Field(gt=0)] = 60
    """A busy engine answers late, and that is no reason to kill it."""
    drain_seconds: Annotated[float, Field(ge=0)] = 300
    """A replica that is to stop (another version is deployed, fewer are needed, the service ends) takes no new
    requests and first ends those it has; after so long they are cut off. `limits.max_seconds` lets every one end."""


class ServedModel(_Strict):
    """One captioner: its replicas, and what each of them takes."""

    export: str | None = None
    """Folder of an export, as `jobs/export.py` writes it; None: nano's, which ships in the package."""
    num_cpus: Annotated[float, Field(ge=0)] = 1
    """That Ray reserves for a replica."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """The same; `tensor_parallel_size` GPUs for a model that is split."""
    engine: Engine = Engine()
    autoscaling: Autoscaling = Autoscaling()

    @property
    def export_dir(self) -> Path:
        # Not through ureca.model: the ingress gets by without torch.
        return Path(self.export) if self.export else Path(ureca.__file__).parent / "nano" / "weights" / "captioner"


_ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Settings(_Strict):
    """Of the whole application."""

    models: Annotated[dict[_ModelName, ServedModel], Field(min_length=1)] = {"nano_captioner": ServedModel()}
    """By the name that requests ask for; one that asks for none gets the first."""
    upkeep: Upkeep = Upkeep()
    limits: Limits = Limits()
    access_tokens: tuple[AccessToken, ...] = ()
    """Requests must bring one of these (`Authorization: Bearer …`). Without any, everybody may ask: then listen on
    loopback only."""
    image_urls: ImageUrls = ImageUrls()
    proposals: ProposalConfig = ProposalConfig()
    """What finds regions in an image that comes without, and what lies at points: pieces of one look, or a model of the
    SAM family, which the ingress then holds."""
    ingress_num_gpus: Annotated[float, Field(ge=0)] = 0
    """For that model; 0 leaves it on the CPU."""


def one_model(export: str | Path | None, **options: Any) -> dict[str, ServedModel]:
    """`Settings.models` of one export alone, under its folder's name; None: nano. `options`: of its `ServedModel`."""
    model = ServedModel(export=None if export is None else str(export), **options)
    return {re.sub(r"[^A-Za-z0-9_.-]", "_", model.export_dir.resolve().name): model}
