"""Labeling at scale: utilization of a slow endpoint, memory, and losses.

    python benchmarks/labeling.py                (about 12 minutes on two otherwise idle cores)
    python benchmarks/labeling.py throughput     (one part; results of the other parts are kept)

    throughput    a labeling job on Ray against an HTTP endpoint of fixed latency and few slots, on photos (of the
                  package, or of the folder URECA_TEST_DATA) and drawn scenes; then the same requests level by level
                  and pass by pass, and one at a time as in the paper's code
    memory        jobs over 1, 4 and 16 times as many images: peak memory of the driver and the actors
    tree          mask trees at SA-1B's size (mask_trees.py)
    faults        killed processes (labeling_faults.py)

Prints a table and, as the last line, one JSON; writes runs/benchmarks/labeling.json.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it ends with this process

import mask_trees
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import labeling_faults
from support.slow_endpoint import SlowEndpoint

from ureca.corpus.read import photos_directory
from ureca.corpus.sources.manifest import ManifestRow, iter_manifest
from ureca.corpus.sources.parse import write_manifest
from ureca.hardware import capture_context
from ureca.labeling.config import LabelConfig, LabelSettings
from ureca.labeling.describers.base import Describer, DescribeRequest
from ureca.labeling.describers.openai_client import ChatConfig
from ureca.labeling.prepare import PreparedImage, Preparer
from ureca.labeling.uniqueness_check import blind_order
from ureca.labeling.worker import DescriberRecipe
from ureca.nano.scenes.files import write_scenes
from ureca.storage.files import read_json, write_json

JOB = Path(__file__).parents[1] / "jobs" / "label_corpus.py"
RESULT = Path("runs/benchmarks/labeling.json")

SLOTS, LATENCY_SECONDS = 16, 1.5
REQUESTS = 1600
"""Approximate number of requests in part `throughput`: 150 s of a fully used endpoint."""
IN_FLIGHT = 32
"""Images that the only actor labels concurrently."""
LEVELS_IMAGES = 8
"""Images that the level-by-level run processes together."""
LOOP_CALLS = 20
"""Timed requests of the one-at-a-time run."""
EDGE = 0.1
"""Share of the run at each end that does not count as its steady phase."""


def write_corpus(folder: Path) -> tuple[int, int]:
    """Copy photos and draw scenes until labeling needs `REQUESTS`; return the numbers of images and requests."""
    given = os.environ.get("URECA_TEST_DATA")
    photos = sorted([*Path(given, "clean").glob("*.jpg"), *Path(given, "coco").glob("*.jpg")]) if given else []
    photos = photos or sorted(photos_directory().glob("*.jpg"))
    requests, images = 0, 0
    for photo in photos:
        if requests > REQUESTS / 2:  # scenes supply the other half
            break
        photo_folder = folder / photo.stem
        photo_folder.mkdir(parents=True)
        for path in (photo, photo.with_suffix(".json")):
            shutil.copy(path, photo_folder / path.name)
        requests, images = requests + sum(map(num_requests, prepared_images(photo_folder))), images + 1
    seed = 0
    while requests < REQUESTS:
        write_scenes(folder / f"scenes_{seed}", range(seed, seed + 4))
        requests += sum(map(num_requests, prepared_images(folder / f"scenes_{seed}")))
        images, seed = images + 4, seed + 4
    return images, requests


def prepared_images(folder: Path) -> list[PreparedImage]:
    """Prepare all images of a folder."""
    preparer = Preparer(LabelSettings(), uses_model=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_manifest([str(folder)], f"{scratch}/manifest.parquet")
        rows: list[ManifestRow] = list(iter_manifest(f"{scratch}/manifest.parquet"))
    return [preparer.arrange(preparer.loader.read(row)) for row in rows]


def num_requests(image: PreparedImage) -> int:
    """Return the number of requests to label the image without retries."""
    return len(image.parents) + sum(map(bool, image.children)) + 2 * sum(map(bool, image.distractors))


class SequencedImage:
    """Requests of one image, the same as labeling sends, in an order that the caller decides."""

    def __init__(self, image: PreparedImage, describer: Describer) -> None:
        self.image, self._describer = image, describer
        self._short: dict[int, str] = {}
        self._long: dict[int, str] = {}
        self._unique: dict[int, str] = {}
        self.depths = [region.depth for region in image.tree.regions]
        self.num_sent = 0

    async def short(self, index: int) -> None:
        """Request a short caption; parent and earlier siblings must have theirs."""
        parent = self.image.parents[index]
        siblings = [k for k in range(index) if self.image.parents[k] == parent]
        self._short[index] = await self._send(
            "short",
            index,
            parent_caption=self._short[parent] if parent >= 0 else None,
            sibling_captions=tuple(self._short[k] for k in siblings),
        )

    async def siblings(self, parent: int, depth: int) -> None:
        """Request the short captions below one parent, one after the other."""
        for index, region_depth in enumerate(self.depths):
            if region_depth == depth and self.image.parents[index] == parent:
                await self.short(index)

    async def long(self, index: int) -> None:
        """Request a long caption; children must have theirs. A region without children keeps its short caption."""
        children = self.image.children[index]
        self._long[index] = self._short[index]
        if children:
            self._long[index] = await self._send(
                "long",
                index,
                own_caption=self._short[index],
                children=children,
                child_captions=tuple(self._long[k] for k in children),
            )

    async def unique(self, index: int) -> None:
        """Request a unique caption if the region has distractors."""
        distractors = self.image.distractors[index]
        if distractors:
            self._unique[index] = await self._send(
                "unique",
                index,
                own_caption=self._long[index],
                distractors=distractors,
                distractor_captions=tuple(self._long[distractor.index] for distractor in distractors),
            )

    async def verify(self, index: int) -> None:
        """Request a choice among candidates if the caption was rewritten."""
        if index in self._unique:
            candidates = blind_order("", index, self.image.distractors[index])
            await self._send("choose", index, own_caption=self._unique[index], candidates=candidates)

    async def _send(self, pass_name: Any, index: int, **facts: Any) -> str:
        self.num_sent += 1
        request = DescribeRequest(
            pass_name=pass_name,
            image=self.image.image,
            segmentations=self.image.segmentations,
            parents=self.image.parents,
            index=index,
            **facts,
        )
        return (await self._describer.describe(request)).text


async def level_by_level(images: Sequence[SequencedImage]) -> None:
    """Caption pass by pass and, in each pass, level by level over all images, with a barrier after every level."""
    deepest = max(max(image.depths, default=0) for image in images)
    for depth in range(deepest + 1):
        chains = [
            (image, parent)
            for image in images
            for parent in {p for p, d in zip(image.image.parents, image.depths, strict=True) if d == depth}
        ]
        await asyncio.gather(*(image.siblings(parent, depth) for image, parent in chains))
    for depth in reversed(range(deepest + 1)):
        await asyncio.gather(*(i.long(k) for i in images for k, d in enumerate(i.depths) if d == depth))
    for name in ("unique", "verify"):
        await asyncio.gather(*(getattr(i, name)(k) for i in images for k in range(len(i.depths))))


async def one_at_a_time(image: SequencedImage, max_requests: int) -> None:
    """Send one request after another, as the paper's code does; stop after `max_requests`."""
    indices = range(len(image.depths))
    for run_pass in (image.short, image.long, image.unique, image.verify):
        for index in reversed(indices) if run_pass == image.long else indices:
            if image.num_sent < max_requests:
                await run_pass(index)


def measure_throughput(folder: Path) -> dict[str, Any]:
    """Measure the share of busy slots of the endpoint, and the speedup over other orders of requests."""
    num_images, expected_requests = write_corpus(folder / "corpus")
    with SlowEndpoint(latency_s=LATENCY_SECONDS, slots=SLOTS) as endpoint:
        options = [f"--chat.base_url={endpoint.url}", f"--chat.model={endpoint.model}", f"--chat.concurrency={SLOTS}"]
        started = time.monotonic()
        run_job(
            folder / "run",
            f"--sources={folder / 'corpus'}",
            "--describer=chat",
            "--actors=1",
            f"--images_in_flight={IN_FLIGHT}",
            "--verify_retries=0",
            *options,
        )
        wall_seconds = time.monotonic() - started
        stats = endpoint.stats()
        requests, timeline = stats["requests"], stats["timeline"]
        seconds = timeline[-1][0] - timeline[0][0]
        entire, steady = endpoint.busy_fraction(), endpoint.busy_fraction(skip=EDGE)
        other_orders = asyncio.run(_other_orders(folder / "corpus", endpoint))
    per_request = {"labeling": seconds / requests, **other_orders}
    return {
        "images": num_images,
        "requests": requests,
        "requests_expected": expected_requests,
        "slots": SLOTS,
        "latency_seconds": LATENCY_SECONDS,
        "images_in_flight": IN_FLIGHT,
        "images_level_by_level": LEVELS_IMAGES,
        "busy_fraction": round(steady, 3),
        "busy_fraction_entire_run": round(entire, 3),
        "seconds": round(seconds, 1),
        "seconds_with_start_and_table": round(wall_seconds, 1),
        "milliseconds_per_request": {name: round(1000 * value, 1) for name, value in per_request.items()},
        "speedup_over_levels": round(per_request["levels"] / per_request["labeling"], 2),
        "speedup_over_one_at_a_time": round(per_request["one_at_a_time"] / per_request["labeling"], 2),
    }


async def _other_orders(corpus: Path, endpoint: SlowEndpoint) -> dict[str, float]:
    """Return seconds per request of the other two orders, over part of the corpus."""
    chat = ChatConfig(base_url=endpoint.url, model=endpoint.model, concurrency=SLOTS)
    recipe = DescriberRecipe.read(LabelConfig(sources=(str(corpus),), describer="chat", chat=chat))
    images = prepared_images(corpus)
    seconds_per_request = {}
    for name in ("levels", "one_at_a_time"):
        describer = recipe.make()
        step = max(1, len(images) // LEVELS_IMAGES)
        group = [SequencedImage(image, describer) for image in images[::step][:LEVELS_IMAGES]]
        started = time.monotonic()
        if name == "levels":
            await level_by_level(group)
        else:
            await one_at_a_time(group[len(group) // 2], LOOP_CALLS)
        seconds_per_request[name] = (time.monotonic() - started) / sum(image.num_sent for image in group)
        await describer.close()
    return seconds_per_request


def run_job(out: Path, *options: str) -> tuple[int, int]:
    """Run the labeling job with its own Ray; return the peaks of unshared memory and of spilled objects, in MB."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, str(JOB), f"--run_directory={out}", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    since = time.time()
    peak, spilled = 0.0, 0.0
    ended = threading.Event()

    def poll() -> None:
        nonlocal peak, spilled
        while not ended.wait(0.5):
            peak = max(peak, _unshared_megabytes(psutil.Process(process.pid)))
            spilled = max(spilled, _spilled_megabytes(since))

    poller = threading.Thread(target=poll)
    poller.start()
    _, stderr = process.communicate()
    ended.set()
    poller.join()
    if process.returncode:
        raise RuntimeError(stderr)
    return round(peak), round(spilled)


def _spilled_megabytes(since: float) -> float:
    """Return the MB that Ray clusters started after `since` have spilled."""
    total = 0
    for folder in Path("/tmp/ray").glob("session_2*/ray_spilled*"):
        if folder.parent.stat().st_ctime < since:
            continue
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_size
    return total / 2**20


def _unshared_megabytes(root: psutil.Process) -> float:
    """Return the unshared memory of the driver and of its Ray workers, in MB."""
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in processes:
        try:
            title = " ".join(process.cmdline()[:1])
            if process == root or title.startswith("ray::"):
                total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**20


def measure_memory(folder: Path, num_images: int = 24) -> dict[str, Any]:
    """Measure peak memory over 1, 4 and 16 times as many images."""
    peaks, rates, spilled = {}, {}, {}
    for factor in (1, 4, 16):
        corpus, out = folder / f"scenes_{factor}", folder / f"run_{factor}"
        write_scenes(corpus, range(factor * num_images))
        options = (f"--sources={corpus}", "--actors=2", "--images_in_flight=8", "--images_per_block=4")
        peaks[str(factor * num_images)], spilled[str(factor * num_images)] = run_job(out, *options)
        usage = read_json(out / "usage.json")
        rates[str(factor * num_images)] = round(usage["start"]["images"] / usage["start"]["cpu_seconds_held"], 2)
        shutil.rmtree(corpus)
    return {"peak_mb_by_images": peaks, "images_per_actor_second": rates, "spilled_mb": spilled}


def measure_faults(folder: Path) -> dict[str, Any]:
    """Run every kind of fault once."""
    corpus = folder / "corpus"
    write_scenes(corpus, range(12))
    return labeling_faults.summarize(labeling_faults.run_all(corpus, folder, 1))


def measure_tree(_: Path) -> dict[str, Any]:
    """Measure mask trees at SA-1B's size."""
    return mask_trees.measure()


PARTS = {"throughput": measure_throughput, "memory": measure_memory, "tree": measure_tree, "faults": measure_faults}


def main() -> None:
    """Measure the parts; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"parts to measure: {', '.join(PARTS)} (default: all)")
    payload: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {}
    names = parser.parse_args().parts or list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    for name in names:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ureca-labeling-") as folder:
            measured = PARTS[name](Path(folder))
        context = {**capture_context(), "load": os.getloadavg(), "seconds": round(time.monotonic() - started)}
        payload[name] = {**measured, "context": context}
        write_json(RESULT, payload)
        for key, value in measured.items():
            if key != "cases":
                print(f"{f'{name}.{key}':<40}{json.dumps(value)}", flush=True)
    print(json.dumps(payload))


if __name__ == "__main__":
    main()
