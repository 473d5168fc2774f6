"""What describers that look have in common: views and question out, a checked answer back."""

import asyncio
from abc import abstractmethod

from ureca.labeling.describers.answers import Reply, read_answer
from ureca.labeling.describers.base import Describer, DescribeRequest, Description
from ureca.labeling.describers.prompts import Prompt, PromptSet


class VlmDescriber(Describer):
    """Asks a model with prompts of a set; how the model is reached is left open."""

    uses_model = True

    def __init__(self, prompts: PromptSet, *, most_prepared: int) -> None:
        """Nothing is started.

        Args:
            prompts: the questions.
            most_prepared: questions whose views are held in memory at once. A walk asks hundreds at a time; more
                than the model can take soon would only wait, with some megabytes each.
        """
        self._prompts = prompts
        self._prepared = asyncio.Semaphore(most_prepared)
        self.prompt_version = prompts.version

    async def describe(self, request: DescribeRequest) -> Description:
        async with self._prepared:
            prompt = await asyncio.to_thread(self._prompts.prompt, request)
            reply = await self._reply(prompt)
        return read_answer(reply, request, marked=prompt.marked, phrases=prompt.phrases)

    @abstractmethod
    async def _reply(self, prompt: Prompt) -> Reply:
        """Have the model answer. Raises as `Describer.describe`."""
