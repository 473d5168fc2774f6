import pytest

from ureca.errors import ConfigError
from ureca.training.config import WorkersConfig
from ureca.training.sizing.placement import refuse_without_room

TWO_MACHINES = [{"CPU": 2.0, "memory": 8e9}, {"CPU": 1.5}]
GPUS = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 1.0}, {"CPU": 64.0}]


def test_what_the_cluster_holds_is_let_through() -> None:
    refuse_without_room(WorkersConfig(num_workers=3), TWO_MACHINES)
    refuse_without_room(WorkersConfig(num_workers=3, use_gpu=True, bf16=True, offload_optimizer=True), GPUS)


@pytest.mark.parametrize(
    ("workers", "machines", "message"),
    [
        (
            WorkersConfig(num_workers=4),
            TWO_MACHINES,
            ("workers.num_workers=4: ", "2 machines with 3 logical CPUs", "--workers.num_workers=3", "RAY_ADDRESS"),
        ),
        (
            WorkersConfig(num_workers=4, use_gpu=True),
            GPUS,
            ("workers.num_workers=4 with workers.use_gpu=true", "3 machines with 3 GPUs", "--workers.num_workers=3"),
        ),
        (
            WorkersConfig(use_gpu=True, bf16=True, offload_optimizer=True),
            [{"CPU": 4.0}],
            ("use_gpu=true, bf16=true, offload_optimizer=true", "1 machine with no GPU", "--workers.use_gpu=false"),
        ),
    ],
)
def test_what_no_cluster_of_this_size_can_hold_is_refused(
    workers: WorkersConfig, machines: list[dict[str, float]], message: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_without_room(workers, machines)
    assert all(text in str(refused.value) for text in message)
