"""Describer for any OpenAI-compatible endpoint, hosted or self-hosted."""

import asyncio
import base64
import io

from PIL import Image

from ureca.errors import ConfigError
from ureca.labeling.describers.answers import Reply
from ureca.labeling.describers.openai_client import ChatConfig, ChatEndpoint, ChatQuery
from ureca.labeling.describers.prompts import Prompt, PromptSet
from ureca.labeling.describers.vlm import VlmDescriber
from ureca.pipeline.budget import Budget

_JPEG_QUALITY = 90


class ChatDescriber(VlmDescriber):
    """Sends requests to an endpoint with OpenAI's own client."""

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
        """Create the client; nothing is sent yet.

        Args:
            config: the endpoint and the job's limits.
            prompts: the prompt set.
            api_key: `config.api_key()`, read by the driver: workers do not have its environment.
            share: share of the job's concurrency and rates for this process, 1 / number of processes; at least one
                request at a time.
            budget: the job's token budget; None: no limit.

        Raises:
            ConfigError: base URL or model is missing.
        """
        if not config.base_url or not config.model:
            missing = "base_url" if not config.base_url else "model"
            raise ConfigError(
                f"chat.{missing} is empty: describer chat needs the endpoint's base URL and model "
                "(--chat.base_url=http://localhost:8000/v1 --chat.model=NAME)"
            )
        slots = max(1, int(config.concurrency * share))
        super().__init__(prompts, max_prepared=2 * slots)
        self.model = config.model
        self._endpoint = ChatEndpoint(config, api_key=api_key, slots=slots, share=share, budget=budget)

    async def check(self) -> None:
        """List the endpoint's models.

        Raises:
            ConfigError: the endpoint does not answer, refuses the key, or lacks the model.
        """
        await self._endpoint.check()

    async def close(self) -> None:
        await self._endpoint.close()

    async def _reply(self, prompt: Prompt) -> Reply:
        pictures = await asyncio.to_thread(lambda: [(label, data_url(picture)) for label, picture in prompt.views])
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
    """Encode the picture as a JPEG data URL, colors at full resolution so that thin outlines keep theirs."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
