"""The configuration classes of the jobs, found in the scripts themselves."""

import ast
import importlib.util
import sys
from typing import Any

from support.paths import JOBS


def config_class(job: str) -> Any:
    """The dataclass that the job's one `load_config(Class, …)` fills."""
    script = JOBS / f"{job}.py"
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    loads = [call for call in calls if getattr(call.func, "id", "") == "load_config"]
    assert len(loads) == 1, f"{script.name}: expected one load_config(Class, …), found {len(loads)}"
    spec = importlib.util.spec_from_file_location(f"job_{job}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(JOBS))  # as Python does for a script: the jobs import their bootstrap
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(JOBS))
    return getattr(module, ast.unparse(loads[0].args[0]))
