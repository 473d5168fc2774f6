"""Dry run of a labeling job: estimate actors, files, requests and cost from a sample of its images."""

import os
import statistics
from collections import Counter
from typing import Any

from ureca.corpus.sources.manifest import iter_manifest
from ureca.corpus.sources.parse import write_manifest
from ureca.errors import UrecaError
from ureca.labeling.config import LabelConfig
from ureca.labeling.job import rows_plan, table_of
from ureca.labeling.prepare import PreparedImage, Preparer
from ureca.labeling.worker import DescriberRecipe
from ureca.pipeline.parts import Parts
from ureca.pipeline.ray_data import OTHER_CPUS, cluster_resources
from ureca.pipeline.usage import HeldResources, make_usage

SAMPLE = 12
"""Images to read and build trees for, evenly spaced over the manifest."""

PROMPT_TOKENS, COMPLETION_TOKENS = 1500, 40
"""Assumed tokens per request until a start has measured them: two InternVL views, and a sentence or two."""

_PROCESS_BYTES = 400 * 2**20
"""Memory of an actor's interpreter with its imports."""


def plan_labeling(config: LabelConfig, directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Estimate the job, in JSON types. Writes only the manifest and sends no request.

    Raises:
        InputError: a source has no images, or no sampled image can be read.
        ConfigError: the cluster has too few GPUs for one actor.
    """
    # Placement on the cluster.
    parts = Parts(table_of(config, directory))
    recipe = DescriberRecipe.read(config)
    num_images = write_manifest(config.sources, parts.manifest).num_images
    resources = cluster_resources()
    plan = rows_plan(config, num_images, resources)
    actors = plan.num_actors(resources.get("CPU", 0), resources.get("GPU", 0))
    # Requests, tokens and memory, from a sample.
    samples, unreadable = _samples(config, parts.manifest, num_images)
    uses_model = recipe.settings()["describer"] != "attributes"
    regions = statistics.mean(len(image.parents) for image in samples)
    requests_per_image = statistics.mean(
        _num_requests(image, uses_model=uses_model, verify=config.settings().verify) for image in samples
    )
    image_bytes = statistics.mean(image.image.nbytes + _masks_bytes(image) for image in samples)
    dense_masks_bytes = max(image.size[0] * image.size[1] * len(image.parents) for image in samples)
    requests = round(requests_per_image * num_images)
    tokens = (requests * PROMPT_TOKENS, requests * COMPLETION_TOKENS) if uses_model else (0, 0)
    held = HeldResources(wall_seconds=0, gpu_seconds=0, cpu_seconds=0)
    counts = Counter(images=num_images, prompt_tokens=tokens[0], completion_tokens=tokens[1])
    cost = make_usage(counts, held, config.prices, table=None, project_images=0)["cost"]
    return {
        "images": num_images,
        "images_done": parts.num_rows(),
        "sampled": {"images": len(samples), "unreadable": unreadable},
        "regions": round(regions * num_images),
        "requests": requests,
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "assumed_tokens_per_request": [PROMPT_TOKENS, COMPLETION_TOKENS] if uses_model else None,
        "estimated_money_for_tokens": cost["estimated_money"],
        "actors": actors,
        "engines": actors if config.describer == "vllm" else 0,
        "gpus": actors * plan.gpus_per_actor,
        "cpus": actors + OTHER_CPUS,
        "cluster": {name: resources.get(name, 0) for name in ("CPU", "GPU")},
        "images_in_flight": actors * plan.images_in_flight,
        "tasks": plan.num_blocks,
        "files": 2 * plan.num_blocks,
        "memory_mb_per_actor": round(
            (_PROCESS_BYTES + plan.images_in_flight * image_bytes + dense_masks_bytes) / 2**20
        ),
    }


def _samples(config: LabelConfig, manifest: str, num_images: int) -> tuple[list[PreparedImage], int]:
    """Return prepared sample images, and the number that failed."""
    preparer = Preparer(config.settings(), uses_model=config.describer != "attributes")
    step = max(1, num_images // SAMPLE)
    prepared: list[PreparedImage] = []
    errors: list[UrecaError] = []
    for number, row in enumerate(iter_manifest(manifest)):
        if number % step or len(prepared) + len(errors) == SAMPLE:
            continue
        try:
            prepared.append(preparer.arrange(preparer.loader.read(row)))
        except UrecaError as error:
            errors.append(error)
    if not prepared:
        raise errors[0]
    return prepared, len(errors)


def _num_requests(prepared: PreparedImage, *, uses_model: bool, verify: bool) -> int:
    """Return the requests for an image if none must be repeated."""
    regions = len(prepared.parents)
    if not uses_model:
        return 3 * regions
    with_distractors = sum(map(bool, prepared.distractors))
    return regions + sum(map(bool, prepared.children)) + with_distractors * (1 + verify)


def _masks_bytes(prepared: PreparedImage) -> int:
    return sum(len(rle["counts"]) for rle in prepared.segmentations)
