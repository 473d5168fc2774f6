"""Folders of the checkout, for tests that start its jobs or read its files."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
JOBS = ROOT / "jobs"
SUPPORT = TESTS / "support"
SERVE_APPS = ROOT / "serve_apps"
