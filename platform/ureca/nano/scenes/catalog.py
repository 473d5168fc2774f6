"""The kinds of things that are drawn, each a sketch with parts and parts of parts.

Each function draws one variant (number of windows, form of the crown, ...) from `rng`. Proportions are chosen
so that the role "main" holds most of the thing's area, that no part fills its parent, and that a shape is far
from the borders between shape names (a box is 1:1 or 1.4:1 to 2.5:1, or thin from 3.3:1).
"""

from collections.abc import Callable
from math import cos, pi, sin

from numpy.random import Generator

from ureca.nano.scenes.areas import AREA_NAMES
from ureca.nano.scenes.outline import Outline, Point


def table(rng: Generator) -> Outline:
    s = Outline("table", 1.6)
    s.box(0, 0.0, 0.0, 1.6, 0.2)
    s.box(0, 0.1, 0.2, 1.5, 0.45)
    for x in (0.14, 1.32):
        s.block("leg", x, 0.45, x + 0.14, 1.0, role="leg", shape="thin")
    if rng.random() < 0.7:
        drawer = s.block("drawer", 0.58, 0.16, 1.02, 0.42, role="drawer", shape="rectangular")
        s.disc("knob", 0.8, 0.29, 0.08, role="knob", parent=drawer)
    s.carries = (0.0, 1.6, 0.0)
    return s


def shelf(rng: Generator) -> Outline:
    s = Outline("shelf", 1.8)
    s.box(0, 0.0, 0.0, 1.8, 0.4)
    reach = 0.56 if rng.random() < 0.5 else 0.7
    s.patch("bracket", [(0.1, 0.4), (0.1 + reach, 0.4), (0.1, 1.0)], role="bracket", shape="triangular")
    s.patch("bracket", [(1.7, 0.4), (1.7 - reach, 0.4), (1.7, 1.0)], role="bracket", shape="triangular")
    s.carries = (0.0, 1.8, 0.0)
    return s


def box(rng: Generator) -> Outline:
    flaps = rng.random() < 0.6
    s = Outline("box", 1.4, "irregular" if flaps else "rectangular")
    opening = s.piece("opening", role="opening", shape="rectangular")
    s.box(0, 0.15, 0.2, 1.25, 1.0)
    s.box(opening, 0.3, 0.34, 1.1, 0.84)
    if flaps:
        s.polygon(0, [(0.15, 0.21), (0.0, 0.0), (0.45, 0.0), (0.55, 0.21)])
        s.polygon(0, [(1.25, 0.21), (1.4, 0.0), (0.95, 0.0), (0.85, 0.21)])
    s.holds = (opening, (0.32, 0.36, 1.08, 0.83))
    return s


def bowl(rng: Generator) -> Outline:
    s = Outline("bowl", 1.1)
    s.block("rim", 0.17, 0.0, 0.93, 0.16, role="rim", shape="thin")
    s.ellipse(0, 0.55, 0.56, 0.55, 0.41)
    if rng.random() < 0.6:
        s.block("foot", 0.22, 0.87, 0.88, 1.0, role="foot", shape="thin")
    s.holds = (0, (0.2, 0.26, 0.9, 0.84))
    return s


def frame(rng: Generator) -> Outline:
    wide = rng.random() < 0.5
    ratio = 1.5 if wide else 1.0
    s = Outline("frame", ratio, "rectangular" if wide else "square")
    s.box(0, 0.0, 0.0, ratio, 1.0)
    rim = 0.18
    canvas = s.block("canvas", rim, rim, ratio - rim, 1 - rim, role="canvas", shape="rectangular" if wide else "square")
    s.holds = (canvas, (rim + 0.03, rim + 0.03, ratio - rim - 0.03, 1 - rim - 0.03))
    return s


def pencil(rng: Generator) -> Outline:
    if rng.random() < 0.5:
        s = Outline("pencil", 0.2, "thin")
        s.box(0, 0.0, 0.2, 0.2, 0.82)
        s.patch("tip", [(0.0, 0.2), (0.1, 0.0), (0.2, 0.2)], role="tip", shape="triangular")
        s.block("eraser", 0.0, 0.81, 0.2, 1.0, role="eraser", shape="square")
        return s
    s = Outline("pencil", 5.0, "thin")
    s.box(0, 0.95, 0.0, 4.0, 1.0)
    s.patch("tip", [(4.0, 0.0), (5.0, 0.5), (4.0, 1.0)], role="tip", shape="triangular")
    s.block("eraser", 0.0, 0.0, 1.0, 1.0, role="eraser", shape="square")
    return s


def sign(rng: Generator) -> Outline:
    s = Outline("sign", 0.6)
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


def fence(rng: Generator) -> Outline:
    posts = int(rng.integers(2, 4))
    s = Outline("fence", 1.5)
    for y in (0.22, 0.64):
        s.box(0, 0.0, y, 1.5, y + 0.22)
    for k in range(posts):
        x = 0.12 + k * 1.14 / (posts - 1)
        s.block("post", x, 0.0, x + 0.12, 1.0, role="post", shape="thin")
    return s


def house(rng: Generator) -> Outline:
    s = Outline("house", 1.0)
    s.box(0, 0.08, 0.34, 0.92, 1.0)
    s.patch("roof", [(0.03, 0.34), (0.5, 0.0), (0.97, 0.34)], role="roof", shape="triangular")
    left = rng.random() < 0.5
    x = 0.17 if left else 0.56
    door = s.block("door", x, 0.57, x + 0.27, 1.0, role="door", shape="rectangular")
    s.disc("knob", x + 0.17, 0.78, 0.08, role="knob", parent=door)
    if rng.random() < 0.7:
        x = 0.56 if left else 0.18
        s.block("window", x, 0.46, x + 0.26, 0.72, role="window", shape="square")
    return s


def car(rng: Generator) -> Outline:
    s = Outline("car", 1.7)
    s.box(0, 0.0, 0.4, 1.7, 0.82)
    s.polygon(0, [(0.22, 0.4), (0.42, 0.0), (1.28, 0.0), (1.48, 0.4)])
    for x in (0.38, 1.32):
        wheel = s.disc("wheel", x, 0.77, 0.23, role="wheel")
        s.disc("hub", x, 0.77, 0.115, role="hub", parent=wheel)
    if rng.random() < 0.5:
        s.block("window", 0.44, 0.09, 0.82, 0.34, role="window", shape="rectangular")
        s.block("window", 0.9, 0.09, 1.28, 0.34, role="window", shape="rectangular")
    else:
        s.block("window", 0.55, 0.08, 1.1, 0.34, role="window", shape="rectangular")
    return s


def tree(rng: Generator) -> Outline:
    s = Outline("tree", 0.7)
    s.block("trunk", 0.23, 0.5, 0.47, 1.0, role="trunk", shape="rectangular")
    if rng.random() < 0.6:
        crown = s.disc("crown", 0.35, 0.31, 0.31, role="main")
        spots = [(0.22, 0.28), (0.46, 0.22), (0.38, 0.47)]
    else:
        points = [(0.35, 0.0), (0.7, 0.66), (0.0, 0.66)]
        crown = s.patch("crown", points, role="main", shape="triangular")
        spots = [(0.35, 0.28), (0.21, 0.53), (0.49, 0.53)]
    for x, y in spots[: rng.integers(1, 4)]:
        s.disc("fruit", x, y, 0.085, role="fruit", parent=crown)
    return s


def flower(rng: Generator) -> Outline:
    s = Outline("flower", 0.72)
    s.block("stem", 0.32, 0.45, 0.4, 1.0, role="stem", shape="thin")
    leaf_x = 0.54 if rng.random() < 0.5 else 0.18
    leaf = s.piece("leaf", role="leaf", shape="oval")
    s.ellipse(leaf, leaf_x, 0.82, 0.16, 0.09)
    petals = int(rng.integers(5, 7))
    head = s.piece("head", role="main", shape="irregular")
    for k in range(petals):
        angle = 2 * pi * k / petals - pi / 2
        s.ellipse(head, 0.36 + 0.2 * cos(angle), 0.34 + 0.2 * sin(angle), 0.13, 0.13)
    s.ellipse(head, 0.36, 0.34, 0.18, 0.18)
    s.disc("center", 0.36, 0.34, 0.12, role="center", parent=head)
    return s


def robot(rng: Generator) -> Outline:
    s = Outline("robot", 0.8)
    for x0, x1 in ((0.2, 0.34), (0.46, 0.6)):
        s.box(0, x0, 0.8, x1, 1.0)
    s.box(0, 0.0, 0.48, 0.8, 0.6)
    body = s.block("body", 0.11, 0.43, 0.69, 0.83, role="main", shape="rectangular")
    if rng.random() < 0.5:
        s.disc("button", 0.4, 0.62, 0.1, role="button", parent=body)
    else:
        for x in (0.27, 0.53):
            s.disc("button", x, 0.62, 0.085, role="button", parent=body)
    head = s.block("head", 0.15, 0.0, 0.65, 0.34, role="head", shape="rectangular")
    s.box(0, 0.34, 0.35, 0.46, 0.42)
    for x in (0.28, 0.52):
        s.disc("eye", x, 0.16, 0.08, role="eye", parent=head)
    return s


def cup(rng: Generator) -> Outline:
    s = Outline("cup", 1.1)
    handle = s.piece("handle", role="handle", shape="irregular")
    s.ellipse(handle, 0.8, 0.45, 0.3, 0.32)
    s.ellipse(handle, 0.8, 0.45, 0.15, 0.17, hole=True)
    s.polygon(0, [(0.0, 0.0), (0.82, 0.0), (0.74, 1.0), (0.08, 1.0)])
    band = s.patch("band", [(0.03, 0.36), (0.79, 0.36), (0.772, 0.57), (0.046, 0.57)], role="band", shape="thin")
    for x in ([0.41], [0.26, 0.56], [0.19, 0.41, 0.63])[rng.integers(0, 3)]:
        s.disc("dot", x, 0.465, 0.085, role="dot", parent=band)
    return s


def fish(rng: Generator) -> Outline:
    s = Outline("fish", 1.6)
    s.patch("tail", [(1.05, 0.54), (1.6, 0.14), (1.6, 0.94)], role="tail", shape="irregular")
    s.ellipse(0, 0.62, 0.56, 0.62, 0.4)
    s.patch("fin", [(0.42, 0.32), (0.86, 0.0), (0.98, 0.36)], role="tail", shape="triangular")
    s.disc("eye", 0.32, 0.48, 0.14, role="eye")
    if rng.random() < 0.5:
        s.patch("gill", [(0.6, 0.56), (0.88, 0.38), (0.88, 0.74)], role="gill", shape="triangular")
    return s


def boat(rng: Generator) -> Outline:
    s = Outline("boat", 1.15)
    s.box(0, 0.5, 0.0, 0.57, 0.62)
    hull = s.patch("hull", [(0.0, 0.62), (1.15, 0.62), (0.92, 1.0), (0.2, 1.0)], role="main", shape="irregular")
    for x in ([0.56], [0.38, 0.74])[rng.integers(0, 2)]:
        s.disc("porthole", x, 0.8, 0.1, role="porthole", parent=hull)
    sail = s.patch("sail", [(0.62, 0.03), (0.62, 0.55), (1.08, 0.55)], role="sail", shape="triangular")
    s.disc("patch", 0.75, 0.41, 0.085, role="patch", parent=sail)
    s.patch("flag", [(0.5, 0.02), (0.5, 0.26), (0.2, 0.14)], role="flag", shape="triangular")
    return s


def clock(rng: Generator) -> Outline:
    square = rng.random() < 0.5
    s = Outline("clock", 1.0, "square" if square else "round")
    if square:
        s.box(0, 0.0, 0.0, 1.0, 1.0)
    else:
        s.ellipse(0, 0.5, 0.5, 0.5, 0.5)
    face = s.disc("face", 0.5, 0.5, 0.31, role="face")
    half = 0.045
    top, right = ((0.24, 0.56), (0.4, 0.72))[rng.integers(0, 2)]
    if top < 0.3:
        s.block("hand", 0.5 - half, top, 0.5 + half, 0.56, role="hand", shape="thin", parent=face)
    else:
        s.block("hand", 0.44, 0.5 - half, right + 0.04, 0.5 + half, role="hand", shape="thin", parent=face)
    return s


def ball(rng: Generator) -> Outline:
    s = Outline("ball", 1.0, "round")
    s.ellipse(0, 0.5, 0.5, 0.5, 0.5)
    if rng.random() < 0.5:
        band = s.block("stripe", 0.02, 0.39, 0.98, 0.62, role="stripe", shape="thin")
        s.disc("dot", 0.5, 0.505, 0.09, role="dot", parent=band)
    else:
        for x, y in ((0.32, 0.34), (0.66, 0.62)):
            spot = s.disc("patch", x, y, 0.16, role="patch")
            s.disc("dot", x, y, 0.08, role="dot", parent=spot)
    return s


def kite(rng: Generator) -> Outline:
    s = Outline("kite", 0.7)
    s.box(0, 0.32, 0.6, 0.39, 1.0)
    s.polygon(0, [(0.35, 0.0), (0.7, 0.3), (0.35, 0.74), (0.0, 0.3)])
    if rng.random() < 0.5:
        spot = s.disc("patch", 0.35, 0.32, 0.15, role="patch")
        s.disc("dot", 0.35, 0.32, 0.075, role="dot", parent=spot)
    else:
        s.patch("panel", [(0.35, 0.06), (0.35, 0.3), (0.06, 0.3)], role="patch", shape="triangular")
        s.patch("panel", [(0.35, 0.3), (0.64, 0.3), (0.35, 0.66)], role="patch", shape="triangular")
    s.patch("bow", [(0.355, 0.86), (0.18, 0.76), (0.18, 0.96)], role="bow", shape="triangular")
    s.patch("bow", [(0.355, 0.86), (0.53, 0.76), (0.53, 0.96)], role="bow", shape="triangular")
    return s


def lamp(rng: Generator) -> Outline:
    s = Outline("lamp", 0.8)
    s.block("stand", 0.36, 0.45, 0.44, 0.88, role="stand", shape="thin")
    s.block("foot", 0.16, 0.87, 0.64, 1.0, role="foot", shape="thin")
    shade = s.patch("shade", [(0.22, 0.0), (0.58, 0.0), (0.8, 0.52), (0.0, 0.52)], role="main")
    for x in ([0.4], [0.25, 0.55])[rng.integers(0, 2)]:
        s.disc("spot", x, 0.34, 0.1, role="spot", parent=shade)
    return s


def mushroom(rng: Generator) -> Outline:
    s = Outline("mushroom", 1.1)
    stem = s.block("stem", 0.4, 0.45, 0.7, 1.0, role="stem", shape="rectangular")
    s.block("door", 0.465, 0.72, 0.635, 1.0, role="door", shape="rectangular", parent=stem)
    arc = [(0.55 - 0.55 * cos(pi * k / 24), 0.55 - 0.55 * sin(pi * k / 24)) for k in range(25)]
    cap = s.patch("cap", arc, role="main")
    for x, y in ((0.3, 0.36), (0.66, 0.22), (0.84, 0.42))[: rng.integers(1, 4)]:
        s.disc("spot", x, y, 0.1, role="spot", parent=cap)
    return s


def ring(rng: Generator) -> Outline:
    s = Outline("ring", 1.0, "ring-shaped")
    s.ellipse(0, 0.5, 0.5, 0.5, 0.5)
    turned = rng.random() < 0.5
    for k in range(2):
        angle = pi * k + (pi / 2 if turned else 0)
        x, y = 0.5 + 0.36 * cos(angle), 0.5 + 0.36 * sin(angle)
        spot = s.disc("patch", x, y, 0.13, role="patch")
        s.disc("dot", x, y, 0.075, role="dot", parent=spot)
    s.ellipse(0, 0.5, 0.5, 0.23, 0.23, hole=True)
    return s


def star(rng: Generator) -> Outline:
    s = Outline("star", 1.05, "star-shaped")
    points: list[Point] = []
    for k in range(10):
        r = 0.55 if k % 2 == 0 else 0.26
        points.append((0.525 + r * sin(pi * k / 5), 0.55 - r * cos(pi * k / 5)))
    s.polygon(0, points)
    center = s.disc("center", 0.525, 0.55, 0.19, role="center")
    if rng.random() < 0.7:
        s.disc("dot", 0.525, 0.55, 0.09, role="dot", parent=center)
    return s


def gift(rng: Generator) -> Outline:
    s = Outline("gift", 0.9)
    s.box(0, 0.0, 0.34, 0.9, 1.0)
    x = (0.365, 0.24)[rng.integers(0, 2)]
    bow = s.piece("bow", role="ribbon", shape="irregular")
    for reach in (-0.27, 0.27):
        middle = x + 0.085
        s.polygon(bow, [(middle, 0.34), (middle + reach, 0.0), (middle + reach, 0.34)])
    s.block("ribbon", x, 0.34, x + 0.17, 1.0, role="ribbon", shape="thin")
    tag = s.block("tag", 0.6, 0.55, 0.84, 0.79, role="tag", shape="square")
    s.disc("dot", 0.72, 0.67, 0.08, role="dot", parent=tag)
    return s


def snowman(rng: Generator) -> Outline:
    s = Outline("snowman", 0.72)
    s.ellipse(0, 0.36, 0.7, 0.3, 0.3)
    head = s.disc("head", 0.36, 0.35, 0.18, role="main")
    hat = s.block("hat", 0.2, 0.0, 0.52, 0.17, role="hat", shape="rectangular")
    s.block("band", 0.2, 0.1, 0.52, 0.17, role="band", shape="thin", parent=hat)
    s.disc("eye", 0.4, 0.33, 0.07, role="button", parent=head)
    for y in ([0.7], [0.62, 0.82])[rng.integers(0, 2)]:
        s.disc("button", 0.36, y, 0.075, role="button")
    return s


KINDS: dict[str, Callable[[Generator], Outline]] = {
    draw.__name__: draw
    for draw in (
        house, car, tree, flower, robot, cup, fish, boat, clock,
        ball, kite, lamp, mushroom, ring, star, gift, snowman,
        table, shelf, box, bowl, frame, pencil, sign, fence,
    )
}  # fmt: skip

CARRIERS = ("table", "shelf")
"""Kinds that other things stand on."""

CONTAINERS = ("box", "bowl", "frame")
"""Kinds that other things lie in."""

PART_NAMES = (
    "band", "bar", "body", "bow", "bracket", "button", "canvas", "cap", "center", "crown", "door", "dot", "drawer",
    "eraser", "eye", "face", "fin", "flag", "foot", "fruit", "gill", "hand", "handle", "hat", "head", "hub",
    "hull", "knob", "leaf", "leg", "opening", "panel", "patch", "plate", "pole", "porthole", "post", "ribbon", "rim",
    "roof", "sail", "shade", "spot", "stand", "stem", "stripe", "tag", "tail", "tip", "trunk", "wheel", "window",
)  # fmt: skip
"""Every name that a part may have."""

KIND_WORDS = tuple(sorted({*KINDS, *PART_NAMES, *AREA_NAMES}))
"""Every name that a region may have, of a whole thing, a part or an area of the background."""
