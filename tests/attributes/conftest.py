"""Regions with given attributes, for tests of captions' claims."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ureca.attributes.measure import RegionAttributes

PLAIN = RegionAttributes(
    color="red",
    color2=None,
    texture="smooth",
    shape="round",
    size="small",
    place="middle",
    place_in_parent=None,
    parent=-1,
    noun="object",
    share=0.02,
    cx=0.5,
    cy=0.5,
    elongation=1.0,
    features=np.array([1.0]),
)


@pytest.fixture
def region() -> Callable[..., RegionAttributes]:
    """Return a function that builds PLAIN with some attributes changed."""
    return lambda **changes: replace(PLAIN, **changes)
