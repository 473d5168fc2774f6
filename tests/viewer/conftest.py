"""The browser of a test module; while it runs, its thread cannot run another event loop."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.chromium import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser, browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield context
