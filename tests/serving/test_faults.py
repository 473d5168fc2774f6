"""The whole service under load: parts of it killed, clients that leave, a full queue, an orderly end."""

import http.client
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from support.serving_load import Load, ask_once, drawn_questions, kill, processes, running_service

from ureca.client.client import Client, RegionCaption, data_url
from ureca.regions.rle import box_to_rle
from ureca.serving.settings import Autoscaling, ServedModel, Settings

pytestmark = pytest.mark.slow

SIZE = (256, 500)


@pytest.fixture(scope="module")
def url(ray_cluster, tiny_export):  # noqa: ARG001
    scaling = Autoscaling(max_ongoing_requests=4, max_queued_requests=4)
    model = ServedModel(export=str(tiny_export), num_cpus=0.5, autoscaling=scaling)
    with running_service(Settings(models={"export": model})) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with Client(url) as client:
        yield client


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8))


def regions(count: int) -> list[dict]:
    return [{"id": f"r{i}", "rle": box_to_rle((60 * i, 10, 60 * i + 50, 200 - 20 * i), SIZE)} for i in range(count)]


def many_regions(eights: int) -> list[dict]:
    return [{**each, "id": f"{each['id']} {number}"} for number in range(eights) for each in regions(8)]


def engine_seconds() -> float:
    """CPU seconds that the engine and its worker process have used so far."""
    [engine] = processes("engine")
    times = [process.cpu_times() for process in (engine, *engine.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def settled_engine_seconds() -> float:
    """The same, once it has nothing more to do."""
    before = engine_seconds()
    while True:
        time.sleep(1.5)
        after = engine_seconds()
        if after - before < 0.05:
            return after
        before = after


def leave_in_the_middle_of_an_answer(url: str, body: dict, seconds_to_wait_for: float) -> None:
    port = int(url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    started = engine_seconds()
    connection.request("POST", "/v1/captions", json.dumps(body), {"Content-Type": "application/json"})
    while engine_seconds() - started < seconds_to_wait_for:
        time.sleep(0.02)
    connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_captions_in_the_engine(url, stream):
    body = {"image": data_url(picture(20)), "regions": many_regions(16), "max_tokens": 250, "stream": stream}
    before = settled_engine_seconds()
    assert httpx.post(f"{url}/v1/captions", json=body, timeout=300).is_success
    whole = settled_engine_seconds() - before
    body["image"] = data_url(picture(21))
    before = settled_engine_seconds()
    leave_in_the_middle_of_an_answer(url, body, whole / 10)
    assert settled_engine_seconds() - before < whole / 2


def test_beyond_the_queue_s_end_requests_are_refused_at_once(url):
    """Four are in progress, four may wait."""
    [question] = drawn_questions(1, regions=8, max_tokens=250)
    before = engine_seconds()
    with httpx.Client(base_url=url, timeout=300) as http_client, ThreadPoolExecutor(16) as pool:
        first = [pool.submit(ask_once, http_client, question) for _ in range(4)]
        while engine_seconds() - before < 0.3:
            time.sleep(0.02)
        received = list(pool.map(lambda _: ask_once(http_client, question), range(12)))
        assert all(isinstance(each.result(), dict) for each in first)
    assert received.count("refused") == 8
    assert sum(isinstance(each, dict) for each in received) == 4


def test_a_request_whose_ingress_is_killed_is_told_to_come_again(url, client):
    [question] = drawn_questions(1, regions=24, max_tokens=250)
    before = engine_seconds()
    with httpx.Client(base_url=url, timeout=300) as http_client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_once, http_client, question)
        while engine_seconds() - before < 0.3:
            time.sleep(0.02)
        kill("ingress")
        assert asked.result() == "refused"
    assert client.caption(question.image, question.regions, max_tokens=4)[0].caption is not None


def test_a_stream_whose_ingress_is_killed_goes_on_where_it_was(url):
    image, asked = picture(30), many_regions(3)
    sent: list[httpx.Request] = []
    with Client(url) as client:
        client._http.event_hooks = {"request": [sent.append]}
        stream = client.stream(image, asked, max_tokens=250)
        events = list(itertools.islice(stream, 40))
        kill("ingress")
        events += stream
        assert len(sent) > 1, "killed too late to show anything"
        undisturbed = client.caption(image, asked, max_tokens=250)
    whole = {region_id: event.caption for region_id, event in events if isinstance(event, RegionCaption)}
    assert whole == {each.id: each.caption for each in undisturbed}
    for region_id, caption in whole.items():
        pieces = [event for of, event in events if of == region_id and isinstance(event, str)]
        assert " ".join("".join(pieces).split()) == caption


@pytest.mark.parametrize("part", ["proxy", "ingress", "replica", "engine"])
def test_a_killed_part_comes_back_and_no_region_is_lost(url, client, part):
    load = Load(url, drawn_questions(4, regions=3, max_tokens=4))
    load.learn()
    load.start(patient=2, once=1, stream=1)
    load.wait_for(lambda: load.answered() >= 12, 120)
    killed = {each.pid for each in processes(part)}
    kill(part)
    goal = load.answered() + 24
    load.wait_for(lambda: load.answered() >= goal and {each.pid for each in processes(part)} - killed, 240)
    load.stop()
    assert set(load.tallies["patient"].outcomes) == {"answered"}
    assert set(load.tallies["once"].outcomes) <= {"answered", "refused", "broken"}
    assert set(load.tallies["stream"].outcomes) == {"answered"}
    if part == "engine":  # its replica is there and says so
        assert load.tallies["once"].outcomes["refused"] > 0
    assert client.is_ready()


def test_a_stream_in_progress_ends_whole_though_its_application_is_deleted(url, client):
    from ray import serve

    stream = client.stream(picture(50), regions(6), max_tokens=250)
    events = [next(stream)]
    serve.delete("captioner", _blocking=False)
    time.sleep(2)
    assert httpx.get(f"{url}/healthz").headers["Retry-After"]  # who comes now is refused in order
    events += stream
    assert sum(isinstance(event, RegionCaption) for _, event in events) == 6
    assert not client.is_ready()
