"""torchvision with a CPU build of torch."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_imports_after_repeated_declaration():
    python(
        "from ureca.torchvision_ops import declare_missing_operators as declare\n"
        "declare(); declare()\n"
        "import torchvision.transforms.v2\n"
        "from transformers import InternVLProcessor\n"
    )


@pytest.mark.slow
def test_vllm_plugin_declares_operators_in_fresh_process():
    [plugin] = [each for each in entry_points(group="vllm.platform_plugins") if "ureca" in each.name]
    assert plugin.load()() is None, "None means: not a platform of vLLM"
    # vLLM imports this in a fresh process to inspect a model's class; its engine process starts with it too.
    python("import vllm.model_executor.models.registry, torchvision")
