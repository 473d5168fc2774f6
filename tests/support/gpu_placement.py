"""Job on a separate Ray cluster with four logical GPUs whose actors report their GPUs; writes placement.json.

    python gpu_placement.py FOLDER TENSOR_PARALLEL_SIZE

Run as a subprocess by tests/labeling/describers/test_vllm.py: a process can join only one Ray cluster, and that of the
tests has no GPUs.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import ray

from ureca.corpus.schema import ImageRow
from ureca.corpus.sources.manifest import ManifestRow
from ureca.corpus.sources.parse import write_manifest
from ureca.corpus.table import iter_images
from ureca.engine.config import gpus_per_actor
from ureca.labeling.describers.vllm import VllmConfig
from ureca.nano.scenes.files import write_scenes
from ureca.pipeline.parts import Parts
from ureca.pipeline.ray_data import RowsPlan, cluster_resources, run_rows

NUM_IMAGES = 12


class ReportingWorker:
    """Worker that quarantines every image; the message has its process, GPUs and time span."""

    async def work(self, row: ManifestRow) -> ImageRow:
        since = time.time()
        await asyncio.sleep(0.5)
        placement = {
            "process": os.getpid(),
            "gpus": sorted(ray.get_gpu_ids()),
            "visible": os.environ["CUDA_VISIBLE_DEVICES"],
            "since": since,
            "until": time.time(),
        }
        return ImageRow.quarantined(row.image_id, row.image_path, "label", Exception(json.dumps(placement)))

    def counts(self) -> Counter[str]:
        return Counter()

    async def close(self) -> None:
        """Do nothing: the worker holds no resources."""


def main(folder: Path, config: VllmConfig) -> None:
    write_scenes(folder / "scenes", range(NUM_IMAGES))
    parts = Parts(str(folder / "regions.parquet"))
    write_manifest([str(folder / "scenes")], parts.manifest)
    ray.init(address="local", num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False)
    plan = RowsPlan(
        label="placement",
        num_images=NUM_IMAGES,
        images_per_block=1,
        images_in_flight=1,
        actors=0,
        gpus_per_actor=gpus_per_actor(config, cluster_resources()["GPU"]),
    )
    stats = run_rows(lambda _budget, _share: ReportingWorker(), parts, plan)
    assert stats.stopped is None
    files = sorted(Path(parts.rows).glob("*.parquet"))
    placements = [json.loads(row.error.message) for file in files for row in iter_images(str(file)) if row.error]
    (folder / "placement.json").write_text(json.dumps(placements))


if __name__ == "__main__":
    main(Path(sys.argv[1]), VllmConfig(tensor_parallel_size=int(sys.argv[2])))
