"""The main job, end to end on one machine: what `make demo` runs, step by step (jobs/demo.py is its contents)."""

from ureca.demo.config import DemoConfig
from ureca.demo.corpus import make_corpus, tree_exact, unique_share
from ureca.demo.report import SHIPPED, demo_report
from ureca.demo.serve import ServedCaptions, serve_heldout
from ureca.demo.steps import Steps

__all__ = [
    "SHIPPED",
    "DemoConfig",
    "ServedCaptions",
    "Steps",
    "demo_report",
    "make_corpus",
    "serve_heldout",
    "tree_exact",
    "unique_share",
]
