"""Cost of streaming: the same requests answered as JSON and as server-sent events, on one service.

    python benchmarks/serving_streams.py

Ray Serve on this machine, one replica of nano, one client; pictures of noise, asked about before, with 1 to 128 boxes
each, captions of 60 tokens at most. Writes runs/benchmarks/serving_streams.json: medians, in seconds.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.serving_load import Question, drawn_questions, running_service

from ureca.client.client import Client, RegionCaption
from ureca.hardware import capture_context
from ureca.serving.settings import ServedModel, Settings
from ureca.storage.files import write_json

REGIONS = (1, 8, 32, 128)
MAX_TOKENS = 60
REPEATS = 5


def at_once(client: Client, question: Question) -> dict[str, Any]:
    """Its seconds, and what each region was received."""
    began = time.perf_counter()
    captions = client.caption(question.image, question.regions, max_tokens=question.max_tokens)
    return {"seconds": time.perf_counter() - began, "captions": {each.id: each.caption for each in captions}}


def streamed(client: Client, question: Question) -> dict[str, Any]:
    """The same, with the seconds to the first word and the number of pieces."""
    began = time.perf_counter()
    first, pieces, captions = 0.0, 0, {}
    for region_id, event in client.stream(question.image, question.regions, max_tokens=question.max_tokens):
        first = first or time.perf_counter() - began
        pieces += 1
        if isinstance(event, RegionCaption):
            captions[region_id] = event.caption
    return {"seconds": time.perf_counter() - began, "first": first, "pieces": pieces, "captions": captions}


def run_case(client: Client, regions: int) -> dict[str, Any]:
    """Both ways in turn, about pictures whose prefix is in the cache."""
    whole, pieces = [], []
    for question in drawn_questions(REPEATS, regions=regions, max_tokens=MAX_TOKENS):
        at_once(client, question)
        whole.append(at_once(client, question))
        pieces.append(streamed(client, question))
        assert pieces[-1]["captions"] == whole[-1]["captions"], "streamed captions differ"
    case = {
        "regions": regions,
        "at_once": round(statistics.median(each["seconds"] for each in whole), 2),
        "streamed": round(statistics.median(each["seconds"] for each in pieces), 2),
        "first_word": round(statistics.median(each["first"] for each in pieces), 2),
        "pieces": round(statistics.median(each["pieces"] for each in pieces)),
    }
    print("  ".join(f"{name} {value}" for name, value in case.items()), flush=True)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/serving_streams.json"))
    options = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)

    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="warning", log_to_driver=False)
    with (
        running_service(Settings(models={"nano_captioner": ServedModel(num_cpus=0.5)})) as url,
        Client(url, timeout_seconds=600) as client,
    ):
        cases = [run_case(client, regions) for regions in REGIONS]
    write_json(options.out, {"cases": cases, "context": capture_context()})


if __name__ == "__main__":
    main()
