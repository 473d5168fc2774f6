"""Serve the trained captioner, caption every held-out region over HTTP, and compare with transformers."""

import json
import logging
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ureca.cluster import connect
from ureca.corpus.schema import ImageRow
from ureca.corpus.table import load_image
from ureca.runs import Progress

CONCURRENT_IMAGES = 4


@dataclass(frozen=True)
class ServedCaptions:
    """Result of captioning the held-out regions over HTTP."""

    requests: int
    errors: int
    seconds: float
    """From the first request to the last answer, with the engine already running."""
    regions_per_second: float
    equal_to_transformers: int
    differing: tuple[dict[str, Any], ...]
    """Captions that differ: position, both tokens, and the distance of the best two logits."""

    def summary(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "errors": self.errors,
            "regions_per_second": round(self.regions_per_second, 2),
            "equal_to_transformers": self.equal_to_transformers,
            "differing": len(self.differing),
            "harmless": sum(difference["harmless"] for difference in self.differing),
        }


def serve_heldout(export_dir: Path, rows: Sequence[ImageRow], *, max_tokens: int, request_file: Path) -> ServedCaptions:
    """Start the captioner on Ray Serve, caption every region of `rows`, and shut it down.

    `request_file` receives the body of one such request, to try with curl.
    """
    from ray import serve

    from ureca.client.client import Client
    from ureca.serving.deployments import build
    from ureca.serving.settings import Settings, one_model

    connect()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    port = _free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build(Settings(models=one_model(export_dir))), name="captioner", route_prefix="/")
        with Client(f"http://127.0.0.1:{port}") as client:
            captions, errors, seconds = _ask(client, rows, max_tokens)
    finally:
        serve.shutdown()
    write_request(request_file, rows[0])
    requests = sum(len(row.regions) for row in rows)
    equal, differing = _compare(export_dir, rows, captions, max_tokens)
    return ServedCaptions(requests, errors, seconds, (requests - errors) / seconds, equal, tuple(differing))


def write_request(path: Path, row: ImageRow, *, regions: int = 3) -> None:
    """Write the body of a POST /v1/captions for the first regions of an image."""
    from ureca.client.client import data_url

    assert row.image_path is not None
    body = {
        "image": data_url(row.image_path),
        "regions": [{"id": region.region_id, "rle": region.segmentation} for region in row.regions[:regions]],
        "style": "unique",
    }
    path.write_text(json.dumps(body))


def _ask(client: Any, rows: Sequence[ImageRow], max_tokens: int) -> tuple[dict[str, list[Any]], int, float]:
    images = {row.image_id: load_image(row) for row in rows}
    first = rows[0]
    client.caption(images[first.image_id], [first.regions[0].segmentation], max_tokens=2)  # warm-up, not counted
    progress = Progress("serve", sum(len(row.regions) for row in rows), unit="regions")

    def one(row: ImageRow) -> list[Any]:
        regions = [{"id": region.region_id, "rle": region.segmentation} for region in row.regions]
        return client.caption(images[row.image_id], regions, max_tokens=max_tokens)

    captions: dict[str, list[Any]] = {}
    started = time.monotonic()
    with ThreadPoolExecutor(CONCURRENT_IMAGES) as pool:
        for row, answers in zip(rows, pool.map(one, rows), strict=True):
            captions[row.image_id] = answers
            progress.update(sum(map(len, captions.values())))
    seconds = time.monotonic() - started
    progress.close()
    errors = sum(answer.caption is None for answers in captions.values() for answer in answers)
    return captions, errors, seconds


def _compare(
    export_dir: Path, rows: Sequence[ImageRow], captions: dict[str, list[Any]], max_tokens: int
) -> tuple[int, list[dict[str, Any]]]:
    """Return how many served captions equal transformers' greedy ones, and where the others diverge."""
    from ureca.engine.parity import compare_with_transformers
    from ureca.engine.results import Caption
    from ureca.model.captioner import Captioner

    captioner = Captioner.from_pretrained(export_dir)
    processor = captioner.processor
    query = processor.query("unique")
    equal, differing = 0, []
    progress = Progress("compare", sum(len(row.regions) for row in rows), unit="regions")
    for row in rows:
        answered = [(region, a) for region, a in zip(row.regions, captions[row.image_id], strict=True) if a.caption]
        if not answered:
            continue
        served = []
        for _, answer in answered:
            ids = processor.caption_ids(answer.caption)
            kept = tuple(ids if answer.finish_reason == "stop" else ids[:-1])
            served.append(Caption(answer.caption, answer.finish_reason, kept, 0, 0, len(kept)))
        image: np.ndarray = load_image(row)
        found = compare_with_transformers(
            captioner,
            image,
            [region.segmentation for region, _ in answered],
            [query] * len(answered),
            served,
            max_tokens=max_tokens,
        )
        equal += found.equal
        for each in found.differing:
            region, _ = answered[each.request]
            differing.append({"image_id": row.image_id, "region_id": region.region_id, **vars(each)})
        progress.update(equal + len(differing), differing=len(differing))
    progress.close()
    return equal, differing


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
