"""OpenAI-compatible chat endpoint over real HTTP with fixed latency, limited slots and faults on demand.

It ignores images: an answer is drawn from a hash of the request, so equal requests get equal answers. It counts
requests and records how many of its slots are busy over time.

    with SlowEndpoint(latency_s=0.2, slots=16) as endpoint:      # a separate process
        ChatConfig(base_url=endpoint.url, model=endpoint.model)
        endpoint.set(faults={"500": 0.1, "refusal": 0.05})       # from now on
        endpoint.kill(); endpoint.start()                        # the same address again
        endpoint.stats()["requests"], endpoint.busy_fraction()

    python tests/support/slow_endpoint.py --port 9000 --behavior '{"latency_s": 0.2, "slots": 16}'
"""

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Self
from urllib.request import Request, urlopen

from aiohttp import web

MODEL = "slow-describer"

_ADJECTIVES = "plain shiny dull rough smooth old new worn broad narrow tall short curved flat folded dusty wet bright"
_COLORS = "red green blue yellow brown gray black white orange purple pink teal beige golden silver"
_NOUNS = (
    "cup plate spoon chair table lamp book box bottle basket shirt wheel door window tree leaf flower stone brick roof "
    "fence path pole sign flag hat shoe bag rope ladder pipe shelf clock mirror pillow blanket carpet curtain candle"
)
_LOCATIONS = "wall floor corner street field river hill garden kitchen station market harbor bridge tower yard"

ANSWER_FAULTS = {
    "refusal": "I'm sorry, but I can't describe this image.",
    "empty": "",
    "language": "eine rote Tasse auf dem Tisch, die neben dem Löffel steht",
    "malformed": '{"caption": ["not", "text"',
}
"""Fault -> answer. Other faults concern HTTP: a status (429, 500, ...), hang, drop, garbage, slow (tenfold)."""


@dataclass
class Behavior:
    """Behavior of the endpoint from now on."""

    latency_s: float = 0.05
    """Seconds from the moment a request has a slot until its answer."""
    slots: int = 8
    """Requests processed concurrently."""
    queue: bool = True
    """If true, a request waits for a slot; else it is answered 429 with Retry-After."""
    retry_after_s: float = 0.2
    structured: bool = True
    """If true, response_format is accepted; else it is answered 400."""
    api_key: str = ""
    """API key that a request must send, if any."""
    choice: int | None = None
    """Number chosen among candidates; None: drawn from the request."""
    correct: bool = True
    """Verdict of the judge."""
    prompt_tokens: int = 1000
    completion_tokens: int = 20
    faults: dict[str, float] = field(default_factory=dict)
    """Fault -> share of requests that meet it, selected by their hash."""
    fault_tries: int = 1
    """Failures of such a request before it is answered; 0: it always fails."""
    poison: str = ""
    """A request that contains this text always gets the status `poison_status`."""
    poison_status: int = 500


class _Server:
    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior
        self.reset()

    def reset(self) -> None:
        self.in_service = self.waiting = 0
        self.timeline: list[tuple[float, int]] = []
        self.counts: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._slot_free = asyncio.Condition()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=256 * 2**20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/stats", self._stats)
        app.router.add_put("/behavior", self._set)
        app.router.add_post("/reset", self._reset)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        if self._refused(request):
            return _error(401, "wrong API key")
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _set(self, request: web.Request) -> web.Response:
        self.behavior = Behavior(**{**asdict(self.behavior), **await request.json()})
        async with self._slot_free:
            self._slot_free.notify_all()
        return web.json_response(asdict(self.behavior))

    async def _reset(self, _: web.Request) -> web.Response:
        self.reset()
        return web.json_response({})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                **{name: self.counts[name] for name in ("requests", "prompt_tokens", "completion_tokens")},
                "by_outcome": {k.removeprefix("="): n for k, n in self.counts.items() if k.startswith("=")},
                "distinct_requests_answered": len(self.answered),
                "repeated_answers": sum(count - 1 for count in self.answered.values()),
                "max_in_service": max((busy for _, busy in self.timeline), default=0),
                "timeline": self.timeline,
            }
        )

    def _refused(self, request: web.Request) -> bool:
        key = self.behavior.api_key
        return bool(key) and request.headers.get("Authorization") != f"Bearer {key}"

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        # refusals and faults that need no slot
        body = await request.json()
        self.counts["requests"] += 1
        if self._refused(request):
            return self._fail(401, "wrong API key")
        if body["model"] != MODEL:
            return self._fail(404, f"no model {body['model']}")
        if "response_format" in body and not self.behavior.structured:
            return self._fail(400, "response_format is not supported")
        # Equal for repeated requests; two samples of one prompt differ in their seed only.
        content = json.dumps([body["messages"], body.get("seed")]).encode()
        digest = hashlib.sha256(content).hexdigest()
        if self.behavior.poison and self.behavior.poison.encode() in content:
            return self._fail(self.behavior.poison_status, "asked to fail")
        fault = self._fault(digest)
        if fault.isdigit():
            return self._fail(int(fault), "asked to fail")
        if not self.behavior.queue and self.in_service >= self.behavior.slots:
            return self._fail(429, "all slots are busy")
        # service time in a slot
        async with self._slot_free:
            await self._slot_free.wait_for(lambda: self.in_service < self.behavior.slots)
            self._mark(+1)
        try:
            await asyncio.sleep(
                {"hang": 3600.0, "slow": 10 * self.behavior.latency_s}.get(fault, self.behavior.latency_s)
            )
        finally:
            self._mark(-1)
            async with self._slot_free:
                self._slot_free.notify()
        # answer
        self.counts[f"={fault or '200'}"] += 1
        if fault == "drop":
            assert request.transport
            request.transport.close()
            return web.Response()
        if fault == "garbage":
            return web.Response(text="<html>502 Bad Gateway</html>", content_type="text/html")
        self.answered[digest] += 1
        text = ANSWER_FAULTS[fault] if fault in ANSWER_FAULTS else _answer(body, digest, self.behavior)
        usage = {"prompt_tokens": self.behavior.prompt_tokens, "completion_tokens": self.behavior.completion_tokens}
        self.counts.update(usage)
        return web.json_response(
            {
                "id": digest[:16],
                "object": "chat.completion",
                "created": int(time.time()),
                "model": MODEL,
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                "usage": {**usage, "total_tokens": sum(usage.values())},
            }
        )

    def _mark(self, change: int) -> None:
        self.in_service += change
        self.timeline.append((time.time(), self.in_service))

    def _fault(self, digest: str) -> str:
        """Return the fault that this attempt of the request meets, or ''."""
        position = int(digest[:8], 16) / 2**32
        for fault, share in self.behavior.faults.items():
            position -= share
            if position < 0:
                self.tries[digest] += 1
                is_exhausted = self.behavior.fault_tries and self.tries[digest] > self.behavior.fault_tries
                return "" if is_exhausted else fault
        return ""

    def _fail(self, status: int, message: str) -> web.Response:
        self.counts[f"={status}"] += 1
        return _error(status, message, self.behavior.retry_after_s)


def _error(status: int, message: str, retry_after_s: float = 0.0) -> web.Response:
    headers = {"Retry-After": f"{retry_after_s:g}"} if status == 429 else {}
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)


def _answer(body: dict[str, Any], digest: str, behavior: Behavior) -> str:
    """Return an answer in the requested format."""
    draw = int(digest[8:24], 16)

    def pick(words: str) -> str:
        nonlocal draw
        draw, index = divmod(draw, len(words.split()))
        return words.split()[index]

    first = f"{pick(_ADJECTIVES)} {pick(_COLORS)} {pick(_NOUNS)}"
    second = f"{pick(_ADJECTIVES)} {pick(_NOUNS)}"
    caption = f"a {first} by a {second} at the {pick(_LOCATIONS)}"
    response_format = body.get("response_format")
    if response_format:
        fields = response_format["json_schema"]["schema"]["properties"]
        values = {
            "caption": caption,
            "differences": [{"number": 1, "difference": f"it is {pick(_COLORS)}"}],
            "number": 1 + draw % 3 if behavior.choice is None else behavior.choice,
            "correct": behavior.correct,
        }
        return json.dumps({name: values[name] for name in fields})
    last = body["messages"][-1]["content"]
    text = last if isinstance(last, str) else last[-1]["text"]
    if "number alone" in text:
        return str(1 if behavior.choice is None else behavior.choice)
    return str(behavior.correct).lower() if "true or false" in text else caption


class SlowEndpoint:
    """The endpoint as a separate process, so that it shares no interpreter with its clients."""

    model = MODEL

    def __init__(self, **behavior: Any) -> None:
        self._behavior = asdict(Behavior(**behavior))
        self._process: subprocess.Popen[str] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return f"{self.address}/v1"

    def start(self) -> None:
        """Start the endpoint; a second start has the same address and empty counts."""
        arguments = ["--port", str(self._port), "--behavior", json.dumps(self._behavior)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout
        self._port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill the endpoint at once, with requests in progress."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def set(self, **behavior: Any) -> None:
        """Change fields of the `Behavior` from now on."""
        self._behavior |= behavior
        self._call("PUT", "/behavior", behavior)

    def reset(self) -> None:
        """Reset the counts; no request may be in progress."""
        self._call("POST", "/reset")

    def stats(self) -> dict[str, Any]:
        """Return requests, by_outcome, answers, tokens, max_in_service, and timeline as (time, busy slots)."""
        return self._call("GET", "/stats")

    def busy_fraction(self, *, skip: float = 0.0) -> float:
        """Return the mean share of busy slots between the first request and the last answer.

        `skip`: share of that time to leave out at each end.
        """
        timeline = self.stats()["timeline"]
        first, last = timeline[0][0], timeline[-1][0]
        start, end = first + skip * (last - first), last - skip * (last - first)
        busy = 0.0
        for (since, count), (until, _) in zip(timeline, timeline[1:], strict=False):
            busy += count * max(0.0, min(until, end) - max(since, start))
        return float(busy / (self._behavior["slots"] * (end - start)))

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self.address + path, data=data, method=method), timeout=30) as answer:
            return json.load(answer)


def main() -> None:
    """Serve until killed; print the port as the first line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behavior", type=json.loads, default={})
    options = parser.parse_args()

    async def serve() -> None:
        runner = web.AppRunner(_Server(Behavior(**options.behavior)).app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", options.port, reuse_address=True)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
