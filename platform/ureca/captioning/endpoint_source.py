"""Captions from a running service, through its client: retries, tokens and limits are the client's.

no answer, service full, no engine    retried `endpoint.retries` times; then EndpointLost: the job stops
token or model refused                EndpointLost at once
request refused                       InputError: the image is quarantined
failure of a ready service            InputError: the image caused it
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ureca.captioning.config import EndpointConfig
from ureca.captioning.source import ImageCaptions
from ureca.client.client import Captions, Client, RegionCaption, ServiceError, as_read
from ureca.corpus.read import LoadedImage
from ureca.engine.utilization import LoadMeter
from ureca.errors import ConfigError, InputError
from ureca.pipeline.errors import EndpointLost
from ureca.regions.rle import Rle

_SERVER_ERROR = 500
_BAD_REQUEST = (400, 413, 422)
"""Statuses of a faulty request: the image is to blame."""


def served_model(config: EndpointConfig, token: str) -> str:
    """Return the service's model to caption with.

    Raises:
        ConfigError: the service does not answer, lacks the model, or refuses the token.
    """
    try:
        with Client(config.url, token=token or None, timeout_seconds=30, retries=2) as client:
            models = client.models()
    except ServiceError as error:
        refused = error.status in (401, 403)
        remedy = f" Set {config.token_env} to a valid token." if refused else ""
        raise ConfigError(f"endpoint.url={config.url}: {error}{remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"endpoint.url={config.url}: is not a URECA service. Give its address without a path."
        ) from error
    if config.model and config.model not in models:
        raise ConfigError(f"endpoint.model={config.model}: the service at {config.url} has {', '.join(models)}")
    return config.model or models[0]


class EndpointSource:
    """Caption source that calls a running service."""

    start_seconds = 0.0

    def __init__(self, config: EndpointConfig, *, token: str, model: str, images_in_flight: int) -> None:
        """Open the client; nothing is sent yet. `images_in_flight` limits concurrent requests."""
        self.load = LoadMeter()
        self.load.begin()
        self._config, self._model = config, model
        self._client = Client(
            config.url, token=token or None, timeout_seconds=config.timeout_seconds, retries=config.retries
        )
        self._threads = ThreadPoolExecutor(images_in_flight, thread_name_prefix="request")

    async def caption(self, image: LoadedImage, requests: Sequence[tuple[Rle, str]], max_tokens: int) -> ImageCaptions:
        """Caption the regions of an image in one request, or in a few, one after the other (see `CaptionSource`)."""
        data = await asyncio.get_running_loop().run_in_executor(self._threads, as_read, image.data, image.image)
        regions = [
            {"id": str(number), "rle": segmentation, "style": style}
            for number, (segmentation, style) in enumerate(requests)
        ]
        max_regions = self._config.regions_per_request
        captions: list[RegionCaption] = []
        usage: Counter[str] = Counter()
        for start in range(0, len(regions), max_regions):
            response = await self._send(data, regions[start : start + max_regions], max_tokens)
            captions += response
            usage.update(response.usage)
        if failed := next((caption for caption in captions if caption.error is not None), None):
            raise InputError(f"region {failed.id} of the image: the service reports: {failed.error}")
        return ImageCaptions(
            texts=tuple(caption.caption or "" for caption in captions),
            truncated=tuple(caption.finish_reason == "length" for caption in captions),
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            cached_tokens=usage["cached_tokens"],
        )

    async def close(self) -> None:
        """Close the connection; waiting requests are not sent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _send(self, data: Any, regions: list[dict[str, Any]], max_tokens: int) -> Captions:
        request = functools.partial(self._client.caption, data, regions, max_tokens=max_tokens, model=self._model)
        loop = asyncio.get_running_loop()
        try:
            with self.load.regions(len(regions)):
                return await loop.run_in_executor(self._threads, request)
        except ServiceError as error:
            if error.status in _BAD_REQUEST:
                raise InputError(f"the service at {self._config.url} refuses the image: {error}") from error
            if error.status == _SERVER_ERROR and await loop.run_in_executor(self._threads, self._client.is_ready):
                raise InputError(f"the service at {self._config.url} fails on the image: {error}") from error
            raise EndpointLost(
                f"{self._config.url}: {str(error).rstrip('.')}. Finished images are kept; the same command resumes "
                "the job."
            ) from error
