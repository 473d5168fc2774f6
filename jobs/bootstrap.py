"""Make `ureca` importable for the jobs in this folder, installed or not.

`ray job submit --working-dir . -- jobs/train_stage2.py` runs a script in an unpacked copy of the checkout, on a machine
where the package need not be installed. Python puts the script's folder first on its path, so every job can begin with
`import bootstrap`. `ureca.cluster.connect` sends the package to Ray's workers on other machines.
"""

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("ureca") is None:
    _source_root = str(Path(__file__).resolve().parent.parent / "platform")
    sys.path.insert(0, _source_root)
    # For child processes, including the workers of a local Ray.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_source_root, os.environ.get("PYTHONPATH", "")]))
