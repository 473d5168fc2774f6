"""A running caption service, requests in number, and what became of each of their regions.

What `serving_faults.py`, `serving_scaling.py` and the tests of the service share.
"""

import contextlib
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import numpy as np
import psutil
from PIL import Image

from support.engine_processes import engine_processes
from ureca.client.client import Client, ServiceError, data_url
from ureca.regions.rle import box_to_rle
from ureca.serving.deployments import build
from ureca.serving.proxy import use_for_ray_started_here
from ureca.serving.settings import Settings

use_for_ray_started_here()

Part = Literal["replica", "engine", "ingress", "proxy"]

_TITLES = {
    "replica": "ServeReplica:captioner:Captioner",
    "ingress": "ServeReplica:captioner:Ingress",
    "proxy": "ray::ProxyActor",
}
"""Parts of the process titles that Ray sets."""

SIZE = (200, 300)
"""Size of the pictures, (height, width)."""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running_service(settings: Settings) -> Iterator[str]:
    """The service's URL, for as long as the body runs; this process has joined a Ray before."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(settings), name="captioner", route_prefix="/")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def processes(part: Part) -> list[psutil.Process]:
    """Those of a part of the service that this process has started."""
    if part == "engine":
        return [engine for replica in processes("replica") for engine in engine_processes(below=replica)]
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if _TITLES[part] in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill(part: Part) -> None:
    """End it without a word."""
    processes(part)[0].kill()


@dataclass(frozen=True)
class Question:
    """A picture with its regions, as requests ask about it."""

    image: bytes
    """A PNG file."""
    regions: list[dict[str, Any]]
    max_tokens: int

    @property
    def body(self) -> dict[str, Any]:
        """Body of a `POST /v1/captions`."""
        return {"image": data_url(self.image), "regions": self.regions, "max_tokens": self.max_tokens}


def drawn_questions(count: int, *, regions: int, max_tokens: int) -> list[Question]:
    """Return pictures of noise, each with `regions` boxes."""
    height, width = SIZE
    questions = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        corners = rng.integers(0, (width // 2, height // 2), (regions, 2)).tolist()
        boxes = [(x, y, x + width // 3, y + height // 3) for x, y in corners]
        rles = [{"id": f"{seed}-{number}", "rle": box_to_rle(box, SIZE)} for number, box in enumerate(boxes)]
        questions.append(Question(file.getvalue(), rles, max_tokens))
    return questions


@dataclass
class Tally:
    """Outcomes of the requested regions, counted."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """answered (by the right caption); wrong; region error (200 without that caption); refused (503 with Retry-After);
    broken (the connection, or a stream before its end); http 500 and the like; given up (after many retries)."""
    finished: list[tuple[float, int]] = field(default_factory=list)
    """`time.monotonic()` and number of regions of each request that was answered."""
    seconds: list[float] = field(default_factory=list)
    """Seconds per request."""

    @property
    def sent(self) -> int:
        return sum(self.outcomes.values())

    def longest_pause(self) -> float:
        """Seconds between two answers, at most."""
        times = sorted(at for at, _ in self.finished)
        return max((later - earlier for earlier, later in zip(times, times[1:], strict=False)), default=0.0)


class Load:
    """Threads that ask all the time: patiently through our client, once without trying again, or piece by piece."""

    def __init__(self, url: str, questions: Sequence[Question]) -> None:
        self.url, self.questions = url, questions
        self.expected: dict[str, str | None] = {}
        self.active: int | None = None
        """Number of threads that send requests, the others wait; None: all."""
        self.in_progress = 0
        """Requests."""
        self.tallies = {"patient": Tally(), "once": Tally(), "stream": Tally()}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._running: list[Any] = []
        self._next = 0

    def learn(self) -> None:
        """Ask every question once, undisturbed: these captions are the right ones."""
        with Client(self.url) as client:
            for question in self.questions:
                answers = client.caption(question.image, question.regions, max_tokens=question.max_tokens)
                self.expected |= {each.id: each.caption for each in answers}

    def start(self, *, patient: int = 0, once: int = 0, stream: int = 0) -> None:
        """Number of threads of each kind."""
        kinds = [self._patiently] * patient + [self._once] * once + [self._streaming] * stream
        self._stopping.clear()
        self._pool = ThreadPoolExecutor(len(kinds))
        self._running = [self._pool.submit(kind, number) for number, kind in enumerate(kinds)]

    def stop(self) -> None:
        """Let every request in progress come to its end."""
        self._stopping.set()
        for each in self._running:
            each.result()
        if self._pool:
            self._pool.shutdown()

    def answered(self, kind: str = "patient") -> int:
        """Regions, so far."""
        return self.tallies[kind].outcomes["answered"]

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        """Raises TimeoutError, and whatever ended a thread."""
        deadline = time.monotonic() + seconds
        while not condition():
            for each in self._running:
                if each.done():
                    each.result()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not after {seconds:g} s: {self.tallies}")
            time.sleep(0.05)

    def _asking(self, number: int) -> Iterator[Question]:
        while not self._stopping.is_set():
            if self.active is not None and number >= self.active:
                time.sleep(0.1)
                continue
            with self._lock:
                self._next += 1
                self.in_progress += 1
                question = self.questions[self._next % len(self.questions)]
            yield question
            with self._lock:
                self.in_progress -= 1

    def _count(self, kind: str, question: Question, started: float, captions: dict[str, str | None] | str) -> None:
        """`captions`: of each id, or what happened instead."""
        tally, now = self.tallies[kind], time.monotonic()
        with self._lock:
            tally.outcomes.update(self.judged(question, captions))
            if not isinstance(captions, str):
                tally.finished.append((now, len(question.regions)))
                tally.seconds.append(now - started)

    def judged(self, question: Question, captions: dict[str, str | None] | str) -> Counter[str]:
        """The outcomes of a question's regions, counted as in `Tally`."""
        ids = [each["id"] for each in question.regions]
        if isinstance(captions, str):
            return Counter({captions: len(ids)})
        return Counter(
            "region error" if captions.get(id) is None else "answered" if captions[id] == self.expected[id] else "wrong"
            for id in ids
        )

    def _patiently(self, number: int) -> None:
        with Client(self.url) as client:
            for question in self._asking(number):
                started = time.monotonic()
                try:
                    answers = client.caption(question.image, question.regions, max_tokens=question.max_tokens)
                    self._count("patient", question, started, {each.id: each.caption for each in answers})
                except ServiceError as error:
                    self._count("patient", question, started, f"given up: {error}")

    def _once(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=300) as http:
            for question in self._asking(number):
                started = time.monotonic()
                self._count("once", question, started, ask_once(http, question))
                time.sleep(0.05)  # a refusal comes at once

    def _streaming(self, number: int) -> None:
        with Client(self.url) as client:
            for question in self._asking(number):
                started = time.monotonic()
                self._count("stream", question, started, stream_once(client, question))


def ask_once(http: httpx.Client, question: Question) -> dict[str, str | None] | str:
    """The captions, or in a word what came instead."""
    try:
        response = http.post("/v1/captions", json=question.body)
    except httpx.TransportError:
        return "broken"
    if response.status_code == 200:
        return {each["id"]: each.get("caption") for each in response.json()["captions"]}
    if response.status_code == 503 and "retry-after" in response.headers:
        return "refused"
    return f"http {response.status_code}"


def stream_once(client: Client, question: Question) -> dict[str, str | None] | str:
    """The same of a streamed answer."""
    captions: dict[str, str | None] = {}
    try:
        for region_id, event in client.stream(question.image, question.regions, max_tokens=question.max_tokens):
            if not isinstance(event, str):
                captions[region_id] = event.caption
    except ServiceError:
        return "broken"
    return captions
