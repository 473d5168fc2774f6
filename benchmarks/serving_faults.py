"""Kill parts of the caption service under load, and count what became of every region that was asked about.

    python benchmarks/serving_faults.py --regions 500        (make faults)

Ray Serve on this machine with one replica of nano, drawn pictures with eight regions each. For each part, a captioner
replica, its vLLM engine, the ingress, Serve's proxy: SIGKILL while requests are in progress. Three kinds of clients ask
all the time: our client, which tries again; one that does not; our client reading a stream. Every answer is compared
to the caption that the same region had before.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.serving_load import Load, Part, drawn_questions, kill, processes, running_service

from ureca.hardware import capture_context
from ureca.serving.settings import ServedModel, Settings
from ureca.storage.files import write_json

PARTS: tuple[Part, ...] = ("replica", "engine", "ingress", "proxy")
REGIONS_PER_IMAGE = 8


@dataclass
class Outcome:
    """Outcome of one kill."""

    part: Part
    pause_seconds: float
    """From one answer to the next, at most."""
    outcomes: dict[str, dict[str, int]]
    """Outcomes of the regions, by kind of client."""
    seconds: float

    @property
    def lost(self) -> int:
        """Regions that our client has no right caption for, streamed or not, or that others got something else for than
        a caption, a refusal that says when to come again, or a broken connection."""
        allowed = {
            "patient": {"answered"},
            "once": {"answered", "refused", "broken"},
            "stream": {"answered"},
        }
        return sum(
            count
            for kind, received in self.outcomes.items()
            for what, count in received.items()
            if what not in allowed[kind]
        )


def run_fault(url: str, part: Part, regions: int, expected: dict[str, str | None], max_tokens: int) -> Outcome:
    """Kill it under load, and go on until our client has got that many regions since."""
    load = Load(url, drawn_questions(8, regions=REGIONS_PER_IMAGE, max_tokens=max_tokens))
    load.expected = expected
    if not expected:
        load.learn()
    started = time.monotonic()
    load.start(patient=3, once=2, stream=1)
    load.wait_for(lambda: load.answered() >= regions // 4, 300)
    killed = {process.pid for process in processes(part)}
    kill(part)
    goal = load.answered() + regions - regions // 4
    load.wait_for(lambda: load.answered() >= goal and {each.pid for each in processes(part)} - killed != set(), 400)
    load.stop()
    assert not any(psutil.pid_exists(pid) for pid in killed)
    return Outcome(
        part,
        round(max(load.tallies["patient"].longest_pause(), 0), 1),
        {kind: dict(tally.outcomes) for kind, tally in load.tallies.items()},
        round(time.monotonic() - started, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=500, help="that our client asks about for each part")
    parser.add_argument("--max-tokens", type=int, default=4)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", default="runs/benchmarks/serving_faults.json")
    options = parser.parse_args()

    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="warning", log_to_driver=False)
    outcomes: list[Outcome] = []
    expected: dict[str, str | None] = {}
    with running_service(Settings(models={"nano_captioner": ServedModel(num_cpus=0.5)})) as url:
        for part in options.parts:
            outcomes.append(run_fault(url, part, options.regions, expected, options.max_tokens))
            print(table(outcomes[-1:]), flush=True)
    ray.shutdown()
    payload = {"context": capture_context(), "outcomes": [asdict(each) for each in outcomes]}
    write_json(options.out, payload)
    sent = sum(count for each in outcomes for received in each.outcomes.values() for count in received.values())
    lost = sum(each.lost for each in outcomes)
    print(table(outcomes))
    print(f"{sent} regions sent, {lost} lost")
    print(json.dumps(payload))
    if lost:
        raise SystemExit(1)


def table(outcomes: list[Outcome]) -> str:
    """One line for each part and kind of client."""
    lines = []
    for each in outcomes:
        lines.append(
            f"{each.part:8} {each.seconds:6.1f} s, longest pause {each.pause_seconds:5.1f} s, lost {each.lost}"
        )
        for kind, received in each.outcomes.items():
            lines.append(f"    {kind:8} " + ", ".join(f"{count} {what}" for what, count in received.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
