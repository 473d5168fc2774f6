"""A training on two machines of one worker each, of which one is lost on the way: for test_resuming.py.

The machines are Ray nodes of a cluster on this one, whose processes are killed as a power cut would.
"""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from support.trainings import stage1, steps_of
from ureca.training.launch import fit
from ureca.training.monitor.metrics import last_line
from ureca.training.plan import Plan

STORE = 100 * 2**20


def main() -> None:
    arguments = json.loads(sys.argv[1])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE},
    )
    machine = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    config = stage1(Path(arguments["base"]), Path(arguments["table"]), num_workers=2)
    config = replace(config, checkpoints=replace(config.checkpoints, storage=arguments["storage"]))
    directory = Path(arguments["directory"])
    directory.mkdir()
    plan = Plan.from_config(config, directory)
    failed: list[BaseException] = []

    def train() -> None:
        try:
            fit(config, directory)
        except BaseException as error:
            failed.append(error)

    training = threading.Thread(target=train)
    training.start()
    while training.is_alive():
        line = last_line(directory / "metrics.jsonl")
        if line is not None and line["step"] > steps_of(plan) >= 4:
            break
        time.sleep(0.2)
    assert line is not None
    assert line["step"] < line["num_steps"], "it was over before a machine could be lost"
    cluster.remove_node(machine, allow_graceful=False)
    print("lost the machine of a worker after step", line["step"], flush=True)
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    training.join()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
