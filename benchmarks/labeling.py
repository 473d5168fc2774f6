"""Labeling at scale: use of a slow endpoint, memory, and losses.

    python benchmarks/labeling.py            (about 12 minutes on two cores that have nothing else to do)
    python benchmarks/labeling.py walk       (one part; the other parts of the result stay)

    walk      a labeling job on Ray against an HTTP endpoint of fixed latency and few places, over real photos' trees
              (those of the package, or of the folder URECA_TEST_DATA) and drawn scenes; next to it, on the same
              endpoint, the same questions level by level and pass by pass, and one call at a time as the paper's code
    memory    jobs over 1, 4 and 16 times as many images: peak of the driver's and the actors' own memory
    tree      mask trees at SA-1B's size (mask_trees.py)
    faults    processes are killed (labeling_faults.py)

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

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported; it listens on loopback only

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
QUESTIONS = 1600
"""Approximate number of requests in part `walk`: 150 s of a fully used endpoint."""
IN_FLIGHT = 32
"""Images that the one actor works on at once."""
LEVELS_IMAGES = 8
"""Images that the run level by level works on together."""
LOOP_CALLS = 20
"""Calls of the loop that are timed."""
EDGE = 0.1
"""Share of the run at each end that is not its steady part."""


def walk_corpus(folder: Path) -> tuple[int, int]:
    """Copy photos and draw scenes until there are enough questions; returns images and questions."""
    given = os.environ.get("URECA_TEST_DATA")
    photos = sorted([*Path(given, "clean").glob("*.jpg"), *Path(given, "coco").glob("*.jpg")]) if given else []
    photos = photos or sorted(photos_directory().glob("*.jpg"))
    questions, images = 0, 0
    for photo in photos:
        if questions > QUESTIONS / 2:  # the other half is drawn
            break
        own = folder / photo.stem
        own.mkdir(parents=True)
        for path in (photo, photo.with_suffix(".json")):
            shutil.copy(path, own / path.name)
        questions, images = questions + sum(map(num_questions, prepared_images(own))), images + 1
    seed = 0
    while questions < QUESTIONS:
        write_scenes(folder / f"scenes_{seed}", range(seed, seed + 4))
        questions += sum(map(num_questions, prepared_images(folder / f"scenes_{seed}")))
        images, seed = images + 4, seed + 4
    return images, questions


def prepared_images(folder: Path) -> list[PreparedImage]:
    """All images of a folder."""
    preparer = Preparer(LabelSettings(), uses_model=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_manifest([str(folder)], f"{scratch}/manifest.parquet")
        rows: list[ManifestRow] = list(iter_manifest(f"{scratch}/manifest.parquet"))
    return [preparer.arrange(preparer.loader.read(row)) for row in rows]


def num_questions(image: PreparedImage) -> int:
    """Number of requests of a walk without retries."""
    return len(image.parents) + sum(map(bool, image.children)) + 2 * sum(map(bool, image.distractors))


class Plain:
    """The same questions as the walk asks, in the order of whoever calls."""

    def __init__(self, image: PreparedImage, describer: Describer) -> None:
        self.image, self._describer = image, describer
        self._short: dict[int, str] = {}
        self._long: dict[int, str] = {}
        self._unique: dict[int, str] = {}
        self.depths = [region.depth for region in image.tree.regions]
        self.asked = 0

    async def short(self, index: int) -> None:
        """Top-down; the siblings before it must have been described."""
        parent = self.image.parents[index]
        siblings = [k for k in range(index) if self.image.parents[k] == parent]
        self._short[index] = await self._ask(
            "short",
            index,
            parent_caption=self._short[parent] if parent >= 0 else None,
            sibling_captions=tuple(self._short[k] for k in siblings),
        )

    async def siblings(self, parent: int, depth: int) -> None:
        """All short captions below one parent, each of which sees those before it."""
        for index, depth_of_it in enumerate(self.depths):
            if depth_of_it == depth and self.image.parents[index] == parent:
                await self.short(index)

    async def long(self, index: int) -> None:
        """Bottom-up; that of a region without children is its short one."""
        children = self.image.children[index]
        self._long[index] = self._short[index]
        if children:
            self._long[index] = await self._ask(
                "long",
                index,
                own_caption=self._short[index],
                children=children,
                child_captions=tuple(self._long[k] for k in children),
            )

    async def unique(self, index: int) -> None:
        """Only of regions that have distractors."""
        distractors = self.image.distractors[index]
        if distractors:
            self._unique[index] = await self._ask(
                "unique",
                index,
                own_caption=self._long[index],
                distractors=distractors,
                distractor_captions=tuple(self._long[each.index] for each in distractors),
            )

    async def verify(self, index: int) -> None:
        """Only of captions that were rewritten."""
        if index in self._unique:
            candidates = blind_order("", index, self.image.distractors[index])
            await self._ask("choose", index, own_caption=self._unique[index], candidates=candidates)

    async def _ask(self, pass_name: Any, index: int, **facts: Any) -> str:
        self.asked += 1
        request = DescribeRequest(
            pass_name=pass_name,
            image=self.image.image,
            segmentations=self.image.segmentations,
            parents=self.image.parents,
            index=index,
            **facts,
        )
        return (await self._describer.describe(request)).text


async def level_by_level(images: Sequence[Plain]) -> None:
    """Pass by pass, and in each pass level by level over all images: the next waits for the last of the one before."""
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


async def one_at_a_time(image: Plain, most: int) -> None:
    """As the paper's code: a loop in which every call waits for the one before; stops after `most` calls."""
    indices = range(len(image.depths))
    for one_pass in (image.short, image.long, image.unique, image.verify):
        for index in reversed(indices) if one_pass == image.long else indices:
            if image.asked < most:
                await one_pass(index)


def measure_walk(folder: Path) -> dict[str, Any]:
    """Share of the endpoint's places that were busy, and how much other orders lose."""
    num_images, questions = walk_corpus(folder / "corpus")
    with SlowEndpoint(latency_s=LATENCY_SECONDS, slots=SLOTS) as endpoint:
        options = [f"--chat.base_url={endpoint.url}", f"--chat.model={endpoint.model}", f"--chat.concurrency={SLOTS}"]
        started = time.monotonic()
        run_job(
            folder / "walk",
            f"--sources={folder / 'corpus'}",
            "--describer=chat",
            "--actors=1",
            f"--images_in_flight={IN_FLIGHT}",
            "--verify_retries=0",
            *options,
        )
        wall_seconds = time.monotonic() - started
        stats = endpoint.stats()
        asked, timeline = stats["requests"], stats["timeline"]
        walk_seconds = timeline[-1][0] - timeline[0][0]
        whole, steady = endpoint.busy_fraction(), endpoint.busy_fraction(skip=EDGE)
        others = asyncio.run(_other_orders(folder / "corpus", endpoint))
    per_question = {"walk": walk_seconds / asked, **others}
    return {
        "images": num_images,
        "questions": asked,
        "questions_expected": questions,
        "slots": SLOTS,
        "latency_seconds": LATENCY_SECONDS,
        "images_in_flight": IN_FLIGHT,
        "images_level_by_level": LEVELS_IMAGES,
        "busy_fraction": round(steady, 3),
        "busy_fraction_whole_run": round(whole, 3),
        "seconds": round(walk_seconds, 1),
        "seconds_with_start_and_table": round(wall_seconds, 1),
        "milliseconds_per_question": {name: round(1000 * value, 1) for name, value in per_question.items()},
        "speedup_over_levels": round(per_question["levels"] / per_question["walk"], 2),
        "speedup_over_one_at_a_time": round(per_question["one_at_a_time"] / per_question["walk"], 2),
    }


async def _other_orders(corpus: Path, endpoint: SlowEndpoint) -> dict[str, float]:
    """Seconds a question of the other two orders, over a part of the corpus."""
    chat = ChatConfig(base_url=endpoint.url, model=endpoint.model, concurrency=SLOTS)
    recipe = DescriberRecipe.read(LabelConfig(sources=(str(corpus),), describer="chat", chat=chat))
    images = prepared_images(corpus)
    found = {}
    for name in ("levels", "one_at_a_time"):
        describer = recipe.make()
        step = max(1, len(images) // LEVELS_IMAGES)
        group = [Plain(image, describer) for image in images[::step][:LEVELS_IMAGES]]
        started = time.monotonic()
        if name == "levels":
            await level_by_level(group)
        else:
            await one_at_a_time(group[len(group) // 2], LOOP_CALLS)
        found[name] = (time.monotonic() - started) / sum(each.asked for each in group)
        await describer.close()
    return found


def run_job(out: Path, *options: str) -> tuple[int, int]:
    """Run the labeling job by itself; peaks of all its processes' own memory and of what Ray put on disk, in MB."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, str(JOB), f"--run_directory={out}", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    since = time.time()
    peak, spilled = 0.0, 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak, spilled
        while not ended.wait(0.5):
            peak = max(peak, _own_megabytes(psutil.Process(process.pid)))
            spilled = max(spilled, _spilled_megabytes(since))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(said)
    return round(peak), round(spilled)


def _spilled_megabytes(since: float) -> float:
    """Return the MB spilled by all Rays started after `since`."""
    total = 0
    for folder in Path("/tmp/ray").glob("session_2*/ray_spilled*"):
        if folder.parent.stat().st_ctime < since:
            continue
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_size
    return total / 2**20


def _own_megabytes(root: psutil.Process) -> float:
    """Return the unshared memory of the driver and of the workers that its Ray has started, in MB."""
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
    """Peak memory over 1, 4 and 16 times as many images."""
    peaks, rates, spilled = {}, {}, {}
    for times in (1, 4, 16):
        corpus, out = folder / f"scenes_{times}", folder / f"run_{times}"
        write_scenes(corpus, range(times * num_images))
        options = (f"--sources={corpus}", "--actors=2", "--images_in_flight=8", "--images_per_block=4")
        peaks[str(times * num_images)], spilled[str(times * num_images)] = run_job(out, *options)
        usage = read_json(out / "usage.json")
        rates[str(times * num_images)] = round(usage["start"]["images"] / usage["start"]["cpu_seconds_held"], 2)
        shutil.rmtree(corpus)
    return {"peak_mb_by_images": peaks, "images_per_actor_second": rates, "spilled_mb": spilled}


def measure_faults(folder: Path) -> dict[str, Any]:
    """Every kind of fault once."""
    corpus = folder / "corpus"
    write_scenes(corpus, range(12))
    return labeling_faults.summarize(labeling_faults.run_all(corpus, folder, 1))


def measure_tree(_: Path) -> dict[str, Any]:
    """Mask trees at SA-1B's size."""
    return mask_trees.measure()


PARTS = {"walk": measure_walk, "memory": measure_memory, "tree": measure_tree, "faults": measure_faults}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    payload: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {}
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    for name in chosen:
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
