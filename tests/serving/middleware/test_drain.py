"""The end of a service in order."""

import asyncio

import httpx
from support.request_images import data_url, photo

from ureca.serving.api.app import create_app
from ureca.serving.middleware.drain import Drain
from ureca.serving.settings import Limits

BODY = {"image": data_url(photo()), "regions": [{"box": [0, 0, 5, 5]}]}


def test_what_is_in_progress_ends_and_what_comes_later_is_refused(backend):
    async def end_it() -> None:
        drain = Drain()
        app = create_app({"measured": backend}, limits=Limits(), drain=drain)
        backend.seconds = 2.0
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            asked = asyncio.create_task(client.post("/v1/captions", json=BODY))
            await asyncio.sleep(0.2)
            ended = asyncio.create_task(drain.wait())
            await asyncio.sleep(0.1)
            late, alive, ready = [
                await client.post("/v1/captions", json=BODY), await client.get("/healthz"), await client.get("/readyz")
            ]  # fmt: skip
            assert (late.status_code, late.headers["retry-after"]) == (503, "5")
            assert late.json()["error"]["message"] == "the service is shutting down; retry"
            assert (alive.status_code, ready.status_code) == (200, 503)
            assert not ended.done()
            await ended
            assert asked.done()
            assert (await asked).json()["captions"][0]["caption"] == "unique 25 at 0,0,5,5"

    asyncio.run(end_it())
