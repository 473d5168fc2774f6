"""Kinds that hold or carry other things, and kinds that are thin as a whole.

A carrier says where things stand on it (`carries`), a container where they lie in it (`holds`). Containers are the
same mirrored, so that what they hold needs no mirroring.
"""

from numpy.random import Generator

from ureca.scenes.sketch import Sketch


def table(rng: Generator) -> Sketch:
    s = Sketch("table", 1.6)
    s.box(0, 0.0, 0.0, 1.6, 0.2)
    s.box(0, 0.1, 0.2, 1.5, 0.45)
    for x in (0.14, 1.32):
        s.block("leg", x, 0.45, x + 0.14, 1.0, role="leg", shape="thin")
    if rng.random() < 0.7:
        drawer = s.block("drawer", 0.58, 0.16, 1.02, 0.42, role="drawer", shape="rectangular")
        s.disc("knob", 0.8, 0.29, 0.08, role="knob", parent=drawer)
    s.carries = (0.0, 1.6, 0.0)
    return s


def shelf(rng: Generator) -> Sketch:
    s = Sketch("shelf", 1.8)
    s.box(0, 0.0, 0.0, 1.8, 0.4)
    reach = 0.56 if rng.random() < 0.5 else 0.7
    s.patch("bracket", [(0.1, 0.4), (0.1 + reach, 0.4), (0.1, 1.0)], role="bracket", shape="triangular")
    s.patch("bracket", [(1.7, 0.4), (1.7 - reach, 0.4), (1.7, 1.0)], role="bracket", shape="triangular")
    s.carries = (0.0, 1.8, 0.0)
    return s


def box(rng: Generator) -> Sketch:
    flaps = rng.random() < 0.6
    s = Sketch("box", 1.4, "irregular" if flaps else "rectangular")
    opening = s.piece("opening", role="opening", shape="rectangular")
    s.box(0, 0.15, 0.2, 1.25, 1.0)
    s.box(opening, 0.3, 0.34, 1.1, 0.84)
    if flaps:
        s.polygon(0, [(0.15, 0.21), (0.0, 0.0), (0.45, 0.0), (0.55, 0.21)])
        s.polygon(0, [(1.25, 0.21), (1.4, 0.0), (0.95, 0.0), (0.85, 0.21)])
    s.holds = (opening, (0.32, 0.36, 1.08, 0.83))
    return s


def bowl(rng: Generator) -> Sketch:
    s = Sketch("bowl", 1.1)
    s.block("rim", 0.17, 0.0, 0.93, 0.16, role="rim", shape="thin")
    s.ellipse(0, 0.55, 0.56, 0.55, 0.41)
    if rng.random() < 0.6:
        s.block("foot", 0.22, 0.87, 0.88, 1.0, role="foot", shape="thin")
    s.holds = (0, (0.2, 0.26, 0.9, 0.84))
    return s


def frame(rng: Generator) -> Sketch:
    wide = rng.random() < 0.5
    ratio = 1.5 if wide else 1.0
    s = Sketch("frame", ratio, "rectangular" if wide else "square")
    s.box(0, 0.0, 0.0, ratio, 1.0)
    rim = 0.18
    canvas = s.block("canvas", rim, rim, ratio - rim, 1 - rim, role="canvas", shape="rectangular" if wide else "square")
    s.holds = (canvas, (rim + 0.03, rim + 0.03, ratio - rim - 0.03, 1 - rim - 0.03))
    return s


def pencil(rng: Generator) -> Sketch:
    if rng.random() < 0.5:
        s = Sketch("pencil", 0.2, "thin")
        s.box(0, 0.0, 0.2, 0.2, 0.82)
        s.patch("tip", [(0.0, 0.2), (0.1, 0.0), (0.2, 0.2)], role="tip", shape="triangular")
        s.block("eraser", 0.0, 0.81, 0.2, 1.0, role="eraser", shape="square")
        return s
    s = Sketch("pencil", 5.0, "thin")
    s.box(0, 0.95, 0.0, 4.0, 1.0)
    s.patch("tip", [(4.0, 0.0), (5.0, 0.5), (4.0, 1.0)], role="tip", shape="triangular")
    s.block("eraser", 0.0, 0.0, 1.0, 1.0, role="eraser", shape="square")
    return s


def sign(rng: Generator) -> Sketch:
    s = Sketch("sign", 0.6)
    s.block("pole", 0.255, 0.5, 0.345, 1.0, role="pole", shape="thin")
    if rng.random() < 0.5:
        plate = s.disc("plate", 0.3, 0.3, 0.3, role="main")
    else:
        plate = s.block("plate", 0.02, 0.02, 0.58, 0.58, role="main", shape="square")
    if rng.random() < 0.5:
        s.block("bar", 0.1, 0.24, 0.5, 0.35, role="mark", shape="thin", parent=plate)
    else:
        s.disc("dot", 0.3, 0.3, 0.13, role="mark", parent=plate)
    return s


def fence(rng: Generator) -> Sketch:
    posts = int(rng.integers(2, 4))
    s = Sketch("fence", 1.5)
    for y in (0.22, 0.64):
        s.box(0, 0.0, y, 1.5, y + 0.22)
    for k in range(posts):
        x = 0.12 + k * 1.14 / (posts - 1)
        s.block("post", x, 0.0, x + 0.12, 1.0, role="post", shape="thin")
    return s
