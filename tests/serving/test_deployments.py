"""The whole service: Ray Serve, the ingress, one engine on random weights. Started once."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from ureca.errors import CheckpointError
from ureca.regions.rle import box_to_rle
from ureca.serving import Client, Settings, build
from ureca.serving.client import data_url

pytestmark = pytest.mark.slow

SIZE = (256, 500)


@pytest.fixture(scope="module")
def url(ray_cluster, tiny_export):  # noqa: ARG001
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = Settings(model=str(tiny_export), num_cpus=0.5, limits={"max_tokens": 4000})
    serve.run(build(settings), name="captioner", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def client(url):
    with Client(url) as client:
        yield client


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8))


def regions(count: int) -> list[dict]:
    return [{"id": f"r{i}", "rle": box_to_rle((60 * i, 10, 60 * i + 50, 200 - 20 * i), SIZE)} for i in range(count)]


def test_regions_of_an_image_share_its_prefix_and_get_captions_of_their_own(url, client):
    assert client.is_ready()
    body = {"image": data_url(picture(1)), "regions": [*regions(5), {"id": "bad"}], "max_tokens": 12}
    answer = httpx.post(f"{url}/v1/captions", json=body, timeout=120).json()
    *captioned, bad = answer["captions"]
    assert [each["id"] for each in captioned] == [f"r{i}" for i in range(5)]
    assert len({each["caption"] for each in captioned}) > 1
    assert bad["error"]["type"] == "invalid_region"
    prompt, cached = answer["usage"]["prompt_tokens"], answer["usage"]["cached_tokens"]
    assert cached > 0.7 * prompt * 4 / 5


def test_a_stream_s_pieces_make_the_captions_that_a_plain_call_gives(client):
    plain = {each.id: each for each in client.caption(picture(2), regions(4), max_tokens=12)}
    pieces: dict[str, str] = dict.fromkeys(plain, "")
    whole = {}
    for region_id, event in client.stream(picture(2), regions(4), max_tokens=12):
        if isinstance(event, str):
            pieces[region_id] += event
        else:
            whole[region_id] = event
    assert whole == plain
    assert {region_id: " ".join(text.split()) for region_id, text in pieces.items()} == {
        region_id: each.caption for region_id, each in plain.items()
    }


def test_many_images_at_a_time_get_what_each_gets_alone(client):
    alone = [client.caption(picture(seed), regions(3), max_tokens=8) for seed in range(10, 16)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: client.caption(picture(seed), regions(3), max_tokens=8), range(10, 16)))
    assert together == alone


def test_a_client_that_leaves_does_not_hold_the_engine(client):
    for seed in range(3):
        stream = client.stream(picture(20 + seed), regions(6), max_tokens=400)
        next(stream)
        stream.close()
    assert client.caption(picture(30), regions(1), max_tokens=4)[0].caption is not None


def test_errors_come_through_the_proxy_in_their_form(url, client):
    refused = httpx.post(f"{url}/v1/captions", json={"image": "http://x", "regions": regions(1)})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "image"
    # Known only behind the ingress: the engine's own limit, in its words and without a traceback.
    long = httpx.post(
        f"{url}/v1/captions",
        json={"image": data_url(picture(3)), "regions": regions(1), "max_tokens": 4000},
        timeout=60,
    )
    assert long.status_code == 400, long.text
    assert long.json()["error"]["message"].startswith("a prompt of ")
    assert "Traceback" not in long.text
    assert json.loads(httpx.get(f"{url}/nothing").text)["error"]["type"] == "not_found"
    assert client.is_ready()


def test_a_dead_engine_is_said_and_not_called_healthy(url, client):
    # Below Ray's worker; one that is this process's own child is another test's.
    [engine] = [
        each
        for each in psutil.Process().children(recursive=True)
        if "EngineCore" in "".join(each.cmdline()) and each.ppid() != psutil.Process().pid
    ]
    engine.kill()
    deadline = time.monotonic() + 30
    while client.is_ready() and time.monotonic() < deadline:
        time.sleep(0.2)
    response = httpx.post(f"{url}/v1/captions", json={"image": data_url(picture(40)), "regions": regions(1)})
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "unavailable"
    assert response.headers["retry-after"] == "5"


def test_what_is_no_export_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(CheckpointError, match=r"no captioner_config\.json in it"):
        build(Settings(model=str(tmp_path)))
