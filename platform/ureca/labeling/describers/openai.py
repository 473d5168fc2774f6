"""The describer behind any OpenAI-compatible endpoint, a hosted one or a server of one's own."""

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
