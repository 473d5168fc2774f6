"""Kill parts of labeling jobs while they run; count images lost, images written twice and repeated requests.

    python benchmarks/labeling_faults.py --runs 5        (make faults)

The faults: tests/support/labeling_faults.py.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.labeling_faults import run_all, summarize

from ureca.nano.scenes.files import write_scenes


def main() -> None:
    """Run all faults; exit with 1 if an image was lost or duplicated, or a request repeated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of every fault (default: 5)")
    parser.add_argument("--images", type=int, default=16, help="images of the corpus (default: 16)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ureca-faults-") as folder:
        corpus = Path(folder) / "corpus"
        write_scenes(corpus, range(options.images))
        summary = summarize(run_all(corpus, Path(folder), options.runs))
    print(json.dumps(summary))
    sys.exit(bool(summary["lost"] or summary["duplicated"] or summary["repeated_requests"]))


if __name__ == "__main__":
    main()
