"""Throughput and latency of one replica under growing load, and autoscaling of replicas.

    python benchmarks/serving_scaling.py

Ray Serve on this machine, nano, drawn pictures with four regions each. First one replica and 1, 2, 4 … clients that
ask all the time: throughput and time to the answer; where throughput stops to grow lies `target_ongoing_requests`.
Then one replica that may become two, few clients, many, few again: replicas, requests in progress and regions a second
over time, and whether a request was lost. Writes runs/benchmarks/serving_scaling.json and, of the two, a picture.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process

import matplotlib

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.serving_load import Load, Tally, drawn_questions, running_service

from ureca.hardware import capture_context
from ureca.serving.settings import Autoscaling, ServedModel, Settings
from ureca.storage.files import write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CLIENTS = (1, 2, 4, 8, 16)
REGIONS_PER_IMAGE = 4


def of_nano(scaling: dict[str, float]) -> Settings:
    """The service's settings."""
    model = ServedModel(num_cpus=0.5, autoscaling=Autoscaling(**scaling))
    return Settings(models={"nano_captioner": model})


def run_step(load: Load, clients: int, seconds: float) -> dict[str, Any]:
    """Run `clients` clients for `seconds`."""
    tally = load.tallies["patient"] = Tally()
    load.start(patient=clients)
    started = time.monotonic()
    time.sleep(seconds)
    load.stop()
    took = time.monotonic() - started
    times = sorted(tally.seconds)
    return {
        "clients": clients,
        "regions_per_second": round(tally.outcomes["answered"] / took, 2),
        "median_seconds": round(statistics.median(times), 2),
        "slowest_tenth_seconds": round(times[int(0.9 * (len(times) - 1))], 2),
        "requests": len(times),
        "not_answered": tally.sent - tally.outcomes["answered"],
    }


class ReplicaSampler:
    """Notes every half second how many replicas there are and how many requests are in progress."""

    def __init__(self, load: Load) -> None:
        self.samples: list[dict[str, float]] = []
        self.started = time.monotonic()
        self._load = load
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def replicas(self) -> int:
        return int(self.samples[-1]["replicas"]) if self.samples else 0

    def _run(self) -> None:
        from ray import serve

        while not self._stopping.wait(0.5):
            states = serve.status().applications["captioner"].deployments["Captioner-nano_captioner"].replica_states
            running = states.get("RUNNING", 0)
            now = time.monotonic()
            recent = sum(count for at, count in list(self._load.tallies["patient"].finished) if at > now - 5)
            self.samples.append(
                {
                    "seconds": round(now - self.started, 1),
                    "replicas": running,
                    "in_progress": self._load.in_progress,
                    "regions_per_second": recent / 5,
                }
            )


def run_scaling(load: Load, *, few: int, many: int, seconds: float) -> dict[str, Any]:
    """Few clients, many until there are two replicas and a while longer, few until there is one again."""
    watch = ReplicaSampler(load)
    load.active = few
    load.start(patient=many)
    time.sleep(seconds / 2)
    load.active = many
    load.wait_for(lambda: watch.replicas() == 2, 300)
    time.sleep(seconds)
    load.active = few
    load.wait_for(lambda: watch.replicas() == 1, 300)
    time.sleep(seconds / 3)
    load.stop()
    watch.stop()
    return {"few": few, "many": many, "outcomes": dict(load.tallies["patient"].outcomes), "samples": watch.samples}


def table(steps: list[dict[str, Any]]) -> str:
    """The first part's figures, one line for each number of clients."""
    lines = ["clients  regions/s  median s  90 % within s  requests  not answered"]
    lines += [
        f"{each['clients']:7} {each['regions_per_second']:10} {each['median_seconds']:9} "
        f"{each['slowest_tenth_seconds']:14} {each['requests']:9} {each['not_answered']:13}"
        for each in steps
    ]
    return "\n".join(lines)


def draw(steps: list[dict[str, Any]], scaling: dict[str, Any], path: Path) -> None:
    """Left: one replica under more and more requests. Right: replicas that follow the load."""
    figure, (one, over_time) = plt.subplots(1, 2, figsize=(13, 4.5), width_ratios=(1, 1.6), layout="constrained")
    clients = [each["clients"] for each in steps]
    one.plot(clients, [each["regions_per_second"] for each in steps], "o-", color="tab:blue", label="regions/s")
    one.set(xscale="log", xticks=clients, xticklabels=clients, xlabel="requests in progress, one replica")
    one.minorticks_off()
    one.set_ylabel("regions/s", color="tab:blue")
    one.set_ylim(bottom=0)
    waiting = one.twinx()
    waiting.plot(clients, [each["median_seconds"] for each in steps], "s--", color="tab:red")
    waiting.set_ylabel("median seconds to the answer", color="tab:red")
    waiting.set_ylim(bottom=0)
    one.set_title("More requests at a time")

    samples = scaling["samples"]
    seconds = [each["seconds"] for each in samples]
    over_time.plot(seconds, [each["in_progress"] for each in samples], color="tab:gray", label="requests in progress")
    over_time.plot(
        seconds, [each["regions_per_second"] for each in samples], color="tab:blue", label="regions/s, of 5 s"
    )
    over_time.set(xlabel="seconds", ylim=(0, None))
    over_time.legend(loc="upper left")
    replicas = over_time.twinx()
    replicas.step(seconds, [each["replicas"] for each in samples], where="post", color="tab:green", linewidth=2)
    replicas.set(ylim=(0, 3), yticks=(0, 1, 2))
    replicas.set_ylabel("replicas", color="tab:green")
    over_time.set_title("Replicas follow the load")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each number of clients")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--out", default="runs/benchmarks/serving_scaling.json")
    parser.add_argument("--picture", type=Path, default=Path("runs/benchmarks/serving_scaling.png"))
    options = parser.parse_args()

    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="warning", log_to_driver=False)
    scaling = {
        "max_replicas": 2,
        "max_ongoing_requests": 16,
        "upscale_delay_seconds": 5,
        "downscale_delay_seconds": 10,
        "look_back_seconds": 5,
        "metrics_interval_seconds": 1,
    }
    with running_service(of_nano(scaling | {"max_replicas": 1})) as url:
        load = Load(url, drawn_questions(8, regions=REGIONS_PER_IMAGE, max_tokens=options.max_tokens))
        load.learn()
        steps = [run_step(load, clients, options.seconds) for clients in CLIENTS]
    print(table(steps), flush=True)
    with running_service(of_nano(scaling)) as url:
        over_time = Load(url, load.questions)
        over_time.expected = load.expected
        followed = run_scaling(over_time, few=1, many=10, seconds=options.seconds)
    ray.shutdown()
    payload = {"context": capture_context(), "steps": steps, "scaling": followed}
    write_json(options.out, payload)
    draw(steps, followed, options.picture)
    print(f"1 -> {max(each['replicas'] for each in followed['samples'])} -> 1 replicas: {followed['outcomes']}")
    print(json.dumps({**payload, "scaling": {**followed, "samples": len(followed["samples"])}}))


if __name__ == "__main__":
    main()
