"""The one browser that this folder's tests share."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.chromium import chromium


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    with chromium() as browser, browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        yield context
