"""Base of describers with a vision-language model: views and prompt out, a checked answer back."""

import asyncio
from abc import abstractmethod

from ureca.labeling.describers.answers import Reply, read_answer
from ureca.labeling.describers.base import Describer, DescribeRequest, Description
from ureca.labeling.describers.prompts import Prompt, PromptSet


class VlmDescriber(Describer):
    """Sends the prompts of a set to a model; subclasses implement the transport."""

    uses_model = True

    def __init__(self, prompts: PromptSet, *, max_prepared: int) -> None:
        """Store the prompts.

        Args:
            prompts: the prompt set.
            most_prepared: requests whose views are held in memory. An image issues hundreds of requests at once; more
                than the model takes soon would only wait, with some megabytes each.
        """
        self._prompts = prompts
        self._prepared = asyncio.Semaphore(max_prepared)
        self.prompt_version = prompts.version

    async def describe(self, request: DescribeRequest) -> Description:
        async with self._prepared:
            prompt = await asyncio.to_thread(self._prompts.prompt, request)
            reply = await self._reply(prompt)
        return read_answer(reply, request, marked=prompt.marked, phrases=prompt.phrases)

    @abstractmethod
    async def _reply(self, prompt: Prompt) -> Reply:
        """Send a prompt to the model. Raises like `Describer.describe`."""
