"""The whole service: Ray Serve, the ingress, one engine on random weights. Started once."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from ray.serve.handle import DeploymentResponse
from support.paths import SERVE_APPS
from support.serving_load import processes

from ureca.client.client import Client, data_url
from ureca.errors import CheckpointError
from ureca.model.internvl.presets import packaged_weights
from ureca.regions.rle import box_to_rle
from ureca.serving.deployments import build, router_by_image
from ureca.serving.settings import Limits, ServedModel, Settings, one_model

pytestmark = pytest.mark.slow

SIZE = (256, 500)
DASHBOARD = SERVE_APPS / "grafana_dashboard.json"


@pytest.fixture(scope="module")
def url(ray_cluster, tiny_export):  # noqa: ARG001
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy({"export": tiny_export})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def deploy(exports: dict[str, Path]) -> None:
    from ray import serve

    models = {name: ServedModel(export=str(export), num_cpus=0.5) for name, export in exports.items()}
    settings = Settings(models=models, limits=Limits(max_tokens=4000))
    serve.run(build(settings), name="captioner", route_prefix="/")


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
        batch_stream = list(
            pool.map(lambda seed: client.caption(picture(seed), regions(3), max_tokens=8), range(10, 16))
        )
    assert batch_stream == alone


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


def scraped(wanted: set[str], seconds: float = 60) -> str:
    """The Prometheus page of Ray's node, once it has all of `wanted`."""
    import ray

    [node] = ray.nodes()
    page = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + seconds
    while True:
        text = httpx.get(page).text
        missing = wanted - set(re.findall(r"^(\w+)", text, re.MULTILINE))
        if not missing:
            return text
        assert time.monotonic() < deadline, f"not exported: {missing}"
        time.sleep(1)


def test_ray_exports_all_that_the_dashboard_asks_for(url, client):
    httpx.post(f"{url}/v1/nothing", json={})  # something to be counted as rejected
    client.caption(picture(4), regions(2), max_tokens=4)
    queries = " ".join(
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])
    )
    text = scraped(set(re.findall(r"\bray_\w+", queries)))
    regions_line = re.search(r'^ray_ureca_regions_total\{(.*finish_reason="length".*)\} ([\d.]+)$', text, re.MULTILINE)
    assert float(regions_line[2]) >= 2
    for tag in ('application="captioner"', 'deployment="Captioner-export"', 'model="export"'):
        assert tag in regions_line[1]
    # vLLM's count of the same tokens, under the same model's name.
    ours, theirs = (
        sum(float(value) for value in re.findall(rf'^{name}\{{[^}}]*="export".*\}} ([\d.]+)$', text, re.MULTILINE))
        for name in ("ray_ureca_prompt_tokens_total", "ray_vllm_prompt_tokens_total")
    )
    assert 0 < ours <= theirs
    assert re.search(
        r'^ray_ureca_requests_total\{.*method="POST".*route="/v1/captions".*status="200"', text, re.MULTILINE
    )


def test_a_request_has_one_id_in_its_response_and_in_the_access_log(url):
    import ray

    sent = {"X-Request-Id": "from-the-client.1"}
    body = {"image": data_url(picture(5)), "regions": regions(1), "max_tokens": 4, "stream": True}
    response = httpx.post(f"{url}/v1/captions", json=body, headers=sent, timeout=60)
    assert response.headers.get_list("x-request-id") == ["from-the-client.1"]
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    deadline = time.monotonic() + 10
    while not (found := [each for log in logs.glob("worker-*.out") for each in access_lines(log, "from-the-client.1")]):
        assert time.monotonic() < deadline, "the request's access line"
        time.sleep(0.2)
    [line] = found
    assert (line["status"], line["model"], line["regions"]) == (200, "export", 1)


def access_lines(log: Path, request_id: str) -> list[dict]:
    """Return the complete access lines of a request; the file may end in a line that is being written."""
    lines = log.read_text().rpartition("\n")[0].splitlines()
    records = [json.loads(line) for line in lines if line.startswith('{"time": ')]
    return [record for record in records if record["request_id"] == request_id]


def test_another_export_and_another_model_are_rolled_in_and_no_request_fails(url, tiny_export):
    """One name's random weights are replaced by nano, and continue under another name."""
    [old] = processes("engine")
    stop = threading.Event()

    def ask(name: str = "export") -> str:
        body = {"model": name, "image": data_url(picture(50)), "regions": regions(2), "max_tokens": 8}
        response = httpx.post(f"{url}/v1/captions", json=body, timeout=120)
        assert response.status_code == 200, response.text
        return " / ".join(each["caption"] for each in response.json()["captions"])

    def ask_for_a_stream() -> str:
        with Client(url, retries=0) as client:
            received = dict(client.stream(picture(50), regions(2), max_tokens=8, model="export"))
        return " / ".join(received[each].caption for each in ("r0", "r1"))

    def keep_asking(how: Callable[[], str]) -> list[str]:
        said = []
        while not stop.is_set():
            said.append(how())
            stop.wait(0.3)  # leaves the cores to the engines that start
        return said

    before = ask()
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(keep_asking, how) for how in (ask, ask, ask_for_a_stream)]
        try:
            deploy({"export": packaged_weights("captioner"), "other": tiny_export})
            old.wait(60)
            time.sleep(2)
        finally:
            stop.set()
        said = [future.result() for future in asked]  # raises what a request raised
    after = ask()
    assert after != before
    for each in said:
        turn = each.index(after)
        assert set(each[:turn]) == {before}
        assert set(each[turn:]) == {after}
        assert turn > 3
    assert ask("other") == before
    assert len(processes("engine")) == 2


def test_calls_about_one_image_go_to_one_replica_and_to_another_while_it_is_full(url):  # noqa: ARG001
    from ray import serve

    class Replica:
        def __init__(self):
            self.name = serve.get_replica_context().replica_id.unique_id

        async def ask(self, seconds: float) -> str:
            await asyncio.sleep(seconds)
            return self.name

    replicas = serve.deployment(Replica).options(
        num_replicas=3,
        max_ongoing_requests=2,
        request_router_config=router_by_image(3),
        ray_actor_options={"num_cpus": 0},
    )
    handle = serve.run(replicas.bind(), name="routed", route_prefix="/routed")

    def ask(image: int, seconds: float = 0) -> DeploymentResponse:
        return handle.options(session_id=f"image {image}").ask.remote(seconds)

    homes = {image: {ask(image).result() for _ in range(4)} for image in range(12)}
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) == 3
    slow = [ask(0, 3) for _ in range(2)]
    began = time.monotonic()
    assert {ask(0).result()} != homes[0]
    assert time.monotonic() - began < 2
    assert {each.result() for each in slow} == homes[0]
    assert {ask(0).result()} == homes[0]
    serve.delete("routed")


def test_what_is_no_export_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(CheckpointError, match=r"captioner_config\.json"):
        build(Settings(models=one_model(tmp_path)))
