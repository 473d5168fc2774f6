"""torchvision next to a CPU build of torch."""

import subprocess
import sys
from importlib.metadata import entry_points


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_and_what_needs_it_import_afterwards_and_twice_does_no_harm():
    python(
        "from ureca.torchvision_ops import declare_missing_operators as declare\n"
        "declare(); declare()\n"
        "import torchvision.transforms.v2\n"
        "from transformers import InternVLProcessor\n"
    )


def test_vllm_s_processes_declare_them_before_they_import_transformers():
    [plugin] = [each for each in entry_points(group="vllm.platform_plugins") if "ureca" in each.name]
    assert plugin.load()() is None, "None: vLLM takes it that this is no platform"
    # What vLLM runs in a fresh process to look at a model's class, and what its engine process starts with.
    python("import vllm.model_executor.models.registry, torchvision")
