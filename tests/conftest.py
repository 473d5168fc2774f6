"""Environment of all tests, set before anything imports Ray, vLLM or transformers."""

import os
from collections.abc import Iterator

os.environ.pop("RAY_ADDRESS", None)  # would override every address that a test passes
os.environ.update(
    {
        # Ray's default would write a token into the home folder; here Ray ends with the tests.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ureca.serving.proxy:middlewares",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DS_ACCELERATOR": "cpu",
    }
)

import pytest  # noqa: E402

pytest_plugins = ["support.tiny", "support.exports", "support.measuring_backend"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, begin with the slow modules: quick ones at the end keep all processes busy."""
    if hasattr(config, "workerinput"):
        slow_files = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """Yield `s3://…` of an empty bucket on a loopback S3 server, set up in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="ureca-test")
        yield "s3://ureca-test"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Yield the address of the Ray shared by all tests.

    This process has joined it; other processes join with RAY_ADDRESS. Always four logical CPUs, because workers mostly
    wait for each other.
    """
    import ray

    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        logging_level="warning",
        log_to_driver=False,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()
