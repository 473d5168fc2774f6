"""Cancelled calls to the captioner's replicas; the calls themselves: test_deployments.py."""

import asyncio

import numpy as np
import pytest

from ureca.serving.api.backend import CaptionCall, Sampling
from ureca.serving.deployments import ServeBackend


class NeverAnswers:
    """In place of Serve's handle, and of what a call of it gives."""

    def __init__(self) -> None:
        self.cancelled = False
        self.caption = self

    def options(self, **_):
        return self

    def remote(self, _call):
        return self

    def __await__(self):
        return asyncio.get_running_loop().create_future().__await__()

    def cancel(self) -> None:
        self.cancelled = True


def test_a_call_past_its_time_is_cancelled_in_the_replica_too():
    handle = NeverAnswers()
    call = CaptionCall(
        image=np.zeros((8, 8, 3), np.uint8), digest="0", regions=(), sampling=Sampling(max_tokens=1), tenant=""
    )

    async def give_up() -> None:
        async with asyncio.timeout(0.05):
            await ServeBackend(handle).caption(call)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert handle.cancelled
