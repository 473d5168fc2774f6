"""Closed vocabulary of visual attributes, with the numeric meaning of each word.

Synthetic scenes take their true attributes from it, the measurement names its findings with it, and claims are looked
up in it. A word therefore has one meaning everywhere:

    color     one of 12 names, some with "dark " or "light "; SHADES gives the RGB value at each name's center
    texture   smooth, striped (parallel bands), checkered (two crossing sets of bands), dotted (equal spots
              in rows), speckled (grains at irregular places)
    shape     from the mask alone; "thin" is 3 or more times as long as wide, "irregular" none of the others
    size      by the mask's fraction of the image's area
    place     by the mask's centroid on a 3x3 grid, of the image or of the parent's bounding box

The twelve colors are the basic color terms of English (Berlin and Kay, 1969) and teal.
"""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 38),
    "orange": (242, 130, 28),
    "yellow": (246, 214, 48),
    "green": (48, 152, 62),
    "teal": (24, 150, 150),
    "blue": (44, 92, 206),
    "purple": (126, 58, 172),
    "pink": (242, 128, 178),
    "brown": (122, 76, 40),
    "gray": (128, 128, 128),
    "black": (22, 22, 24),
    "white": (244, 244, 242),
}
"""Name -> RGB (0..255) at its center."""

SHADES: dict[str, tuple[int, int, int]] = {
    **COLORS,
    "dark red": (122, 14, 24),
    "dark green": (18, 80, 38),
    "dark teal": (8, 80, 86),
    "dark blue": (20, 40, 112),
    "dark purple": (68, 24, 100),
    "dark brown": (66, 38, 20),
    "dark gray": (72, 72, 74),
    "light yellow": (250, 240, 164),
    "light green": (152, 216, 142),
    "light teal": (136, 218, 210),
    "light blue": (142, 188, 242),
    "light purple": (192, 152, 228),
    "light pink": (250, 204, 216),
    "light brown": (192, 152, 106),
    "light gray": (192, 192, 192),
}
"""Every allowed color name.

There is no dark orange (brown), dark pink, light red (pink), or shade of black or white: other names cover these
colors.
"""

TEXTURES: tuple[str, ...] = ("smooth", "striped", "checkered", "dotted", "speckled")

SHAPES: tuple[str, ...] = (
    "round",
    "oval",
    "square",
    "rectangular",
    "triangular",
    "star-shaped",
    "ring-shaped",
    "thin",
    "irregular",
)

SIZES: dict[str, float] = {"tiny": 0.0, "small": 0.01, "medium": 0.03, "large": 0.10, "huge": 0.30}
"""Name -> smallest fraction of the image's area with this name."""

PLACES: tuple[tuple[str, str, str], ...] = (
    ("upper left", "top", "upper right"),
    ("left", "middle", "right"),
    ("lower left", "bottom", "lower right"),
)
"""Rows from top to bottom, each from left to right: thirds of the width and of the height."""


def base_color(name: str) -> str:
    """Return the color without "dark " or "light "."""
    return name.removeprefix("dark ").removeprefix("light ")


def size_of(share: float) -> str:
    """Return the name of a size from the mask's fraction of the image's area (0..1)."""
    return [name for name, smallest in SIZES.items() if share >= smallest][-1]


def place_of(cx: float, cy: float) -> str:
    """Return the name of a centroid's place; both are in 0..1, from the upper left."""
    column, row = (min(2, max(0, int(3 * value))) for value in (cx, cy))
    return PLACES[row][column]
