"""Shut down and upgrade the caption service under load; count the outcome of every region.

python benchmarks/serving_orderly.py

end         `ureca serve` gets SIGTERM during many requests, some of them streams. Requests in progress must finish;
            later ones must get 503 with Retry-After.
exchange    A cluster (`ray start --head`) runs serve_apps/captioner.yaml through `serve deploy`. While clients send
            requests, a second deploy adds a model and changes a limit: no request may fail. The code reaches the
            cluster as docs/serving.md says, in a zip of this repository.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.serving_load import Load, ask_once, drawn_questions, free_port, stream_once

from ureca.client.client import Client
from ureca.hardware import capture_context
from ureca.storage.files import write_json

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
REGIONS_PER_IMAGE = 8
REGIONS_AT_THE_END = 32
"""In each request, so that none is over when the signal comes."""
REQUESTS_AT_THE_END = 12
"""More than a replica takes at a time, so that some still wait for their turn when the signal comes."""
CLIENTS = 8


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:g} s")
        time.sleep(0.2)


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to end, and has to."""
    process = subprocess.Popen([str(BIN / command[0]), *command[1:]], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def run_end(max_tokens: int) -> dict[str, Any]:
    """Measure requests in progress at SIGTERM."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        running("ureca", "serve", "--port", str(port)) as service,
        Client(url, retries=0) as client,
        httpx.Client(base_url=url, timeout=300) as http,
        ThreadPoolExecutor(REQUESTS_AT_THE_END) as pool,
    ):
        wait_until(client.is_ready, 180, "the service's start")
        load = Load(url, drawn_questions(REQUESTS_AT_THE_END, regions=REGIONS_AT_THE_END, max_tokens=max_tokens))
        load.learn()
        ways = [partial(ask_once, http), partial(stream_once, client)]
        asked = [pool.submit(ways[number % 2], question) for number, question in enumerate(load.questions)]
        time.sleep(1)
        before = sum(each.done() for each in asked)
        service.send_signal(signal.SIGTERM)
        started = time.monotonic()
        time.sleep(0.5)  # until then the signal may not have been heard
        late: Counter[str] = Counter()
        while not all(each.done() for each in asked):
            answer = ask_once(http, load.questions[0])
            late[answer if isinstance(answer, str) else "answered"] += 1
            time.sleep(0.1)
        received = zip(load.questions, asked, strict=True)
        outcomes = sum((load.judged(question, each.result()) for question, each in received), Counter())
        service.wait(60)
    return {
        "requests": REQUESTS_AT_THE_END,
        "answered_before_the_signal": before,
        "outcomes": dict(outcomes),
        "asked_while_it_ended": dict(late),
        "seconds_to_end": round(time.monotonic() - started, 1),
        "exit_status": service.returncode,
    }


def run_exchange(regions: int, max_tokens: int) -> dict[str, Any]:
    """Measure clients that send requests continuously while another version is deployed."""
    port, dashboard = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    cluster = [f"--port={free_port()}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    with (
        tempfile.TemporaryDirectory() as folder,
        running("ray", "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1", *cluster),
        Client(url) as client,
    ):
        zipped = Path(folder, "ureca.zip")
        subprocess.run(
            ["git", "archive", "--format=zip", "--prefix=ureca/", "-o", zipped, "HEAD"], cwd=ROOT, check=True
        )
        wait_until(lambda: answers(f"http://127.0.0.1:{dashboard}/api/version"), 120, "Ray's start")
        deploy(folder, dashboard, zipped, port, models=("nano",), max_regions=64)
        wait_until(client.is_ready, 240, "the first version")
        load = Load(url, drawn_questions(CLIENTS, regions=REGIONS_PER_IMAGE, max_tokens=max_tokens))
        load.learn()
        load.start(patient=1, once=2, stream=1)
        load.wait_for(lambda: load.answered("once") >= regions // 4, 300)
        began = time.monotonic()
        deploy(folder, dashboard, zipped, port, models=("nano", "second"), max_regions=32)
        load.wait_for(lambda: client.models() == ["nano", "second"] and client.is_ready(), 400)
        seconds = time.monotonic() - began
        goal = load.answered("once") + regions // 4
        load.wait_for(lambda: load.answered("once") >= goal, 300)
        load.stop()
    return {
        "seconds_to_exchange": round(seconds, 1),
        "longest_pause": round(max(tally.longest_pause() for tally in load.tallies.values()), 1),
        "outcomes": {kind: dict(tally.outcomes) for kind, tally in load.tallies.items()},
    }


def answers(url: str) -> bool:
    """Return True if the service answers."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def deploy(folder: str, dashboard: int, zipped: Path, port: int, *, models: tuple[str, ...], max_regions: int) -> None:
    """`serve deploy` of the repository's YAML with these changes."""
    config = yaml.safe_load((ROOT / "serve_apps" / "captioner.yaml").read_text())
    config["http_options"]["port"] = port
    [application] = config["applications"]
    application["runtime_env"] = {"working_dir": zipped.as_uri(), "env_vars": {"PYTHONPATH": "platform"}}
    application["args"]["models"] = {name: {"num_cpus": 0.5} for name in models}
    application["args"]["limits"]["max_regions"] = max_regions
    file = Path(folder, "captioner.yaml")
    file.write_text(yaml.safe_dump(config))
    command = [BIN / "serve", "deploy", file, "--address", f"http://127.0.0.1:{dashboard}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=1000, help="asked about while versions are exchanged, at least")
    parser.add_argument("--out", default="runs/benchmarks/serving_orderly.json")
    options = parser.parse_args()
    ended = run_end(max_tokens=200)
    print(f"end: {ended}", flush=True)
    exchanged = run_exchange(options.regions, max_tokens=8)
    print(f"exchange: {exchanged}", flush=True)
    payload = {"context": capture_context(), "end": ended, "exchange": exchanged}
    write_json(options.out, payload)
    print(json.dumps(payload))
    received = [ended["outcomes"], *exchanged["outcomes"].values()]
    lost = sum(count for each in received for what, count in each.items() if what != "answered")
    print(f"{sum(sum(each.values()) for each in received)} regions asked about, {lost} lost")
    late = ended["asked_while_it_ended"]
    if lost or ended["exit_status"] or "refused" not in late or set(late) - {"refused", "broken"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
