"""The describer behind any OpenAI-compatible endpoint, a hosted one or a server of one's own."""

import asyncio
import base64
import io
import os
from dataclasses import dataclass

from PIL import Image

from ureca.errors import ConfigError
from ureca.labeling.describers.answers import Reply
from ureca.labeling.describers.base import Budget
from ureca.labeling.describers.openai_client import ChatEndpoint, ChatQuery
from ureca.labeling.describers.prompts import Prompt, PromptSet
from ureca.labeling.describers.vlm import VlmDescriber

_JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """An OpenAI-compatible endpoint and how hard it may be used. Limits hold for the whole job."""

    base_url: str = ""
    """Its address up to and with /v1."""
    model: str = ""
    """The model's name there."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; an endpoint that asks for none needs none."""
    concurrency: int = 32
    """Requests under way at once."""
    requests_per_minute: int = 0
    """0: no limit."""
    tokens_per_minute: int = 0
    """Of prompts and answers; 0: no limit."""
    max_total_tokens: int = 0
    """Spending limit of the job, of prompts and answers; the job then stops and can go on later. 0: no limit."""
    timeout_s: float = 120.0
    """Of one request."""
    retries: int = 6
    """Failures of one request, while others are answered, after which its image is set aside."""
    give_up_after_s: float = 900.0
    """Seconds without any answer after which the job stops; the same command goes on from there."""

    def __post_init__(self) -> None:
        least = {
            "concurrency": 1,
            "requests_per_minute": 0,
            "tokens_per_minute": 0,
            "max_total_tokens": 0,
            "retries": 0,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"chat.{name}={getattr(self, name)}: give {minimum} or more")
        for name in ("timeout_s", "give_up_after_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"chat.{name}={getattr(self, name)}: give more than 0 seconds")

    def api_key(self) -> str:
        """The key of this process's environment, or ''."""
        return os.environ.get(self.api_key_env, "")


class ChatDescriber(VlmDescriber):
    """Asks an endpoint through OpenAI's own client."""

    name = "chat"

    def __init__(
        self,
        config: ChatConfig,
        prompts: PromptSet,
        *,
        api_key: str = "",
        share: float = 1.0,
        budget: Budget | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            config: the endpoint and the job's limits.
            prompts: the questions.
            api_key: `config.api_key()`, read where the job was started: workers don't have its environment.
            share: of the job's concurrency and rates that this process may use, 1 / number of processes; at least
                one request at a time.
            budget: the job's tokens; None: no limit.

        Raises:
            ConfigError: no address or no model.
        """
        if not config.base_url or not config.model:
            missing = "base_url" if not config.base_url else "model"
            raise ConfigError(
                f"chat.{missing} is empty: describer chat needs the endpoint's address and the model's name there "
                "(--chat.base_url=http://localhost:8000/v1 --chat.model=NAME)"
            )
        places = max(1, int(config.concurrency * share))
        super().__init__(prompts, most_prepared=2 * places)
        self.model = config.model
        self._endpoint = ChatEndpoint(config, api_key=api_key, places=places, share=share, budget=budget)

    async def check(self) -> None:
        """Ask the endpoint for its models.

        Raises:
            ConfigError: nobody answers at that address, the key is refused, or the model is not among them.
        """
        await self._endpoint.check()

    async def close(self) -> None:
        await self._endpoint.close()

    async def _reply(self, prompt: Prompt) -> Reply:
        pictures = await asyncio.to_thread(lambda: [(told, data_url(picture)) for told, picture in prompt.views])
        return await self._endpoint.ask(
            ChatQuery(
                pass_name=prompt.pass_name,
                system=prompt.system,
                pictures=tuple(pictures),
                text=prompt.text_for(structured=True),
                plain_text=prompt.text_for(structured=False),
                schema=prompt.schema,
                temperature=prompt.temperature,
                max_tokens=prompt.max_tokens,
                seed=prompt.seed,
            )
        )


def data_url(picture: Image.Image) -> str:
    """The picture as a JPEG in a URL; colors at full resolution, so that thin outlines keep theirs."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
