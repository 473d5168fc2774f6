"""`ureca view TABLE`: write a region table as an HTML gallery, and open it."""

import argparse
import os
import sys
import webbrowser
from pathlib import Path

from ureca.errors import ConfigError
from ureca.viewer.gallery import write_gallery


def view_table(argv: list[str]) -> None:
    """Run the subcommand.

    Raises:
        UrecaError: the table is missing, no image matches, or the page can't be written.
    """
    options = _parser().parse_args(argv)
    if options.images < 1:
        raise ConfigError(f"--images {options.images}: must be at least 1")
    summary = write_gallery(options.output, options.table, images=options.images, only=options.filter)
    size_mb = summary.num_bytes / 1e6
    print(f"{options.output}  {size_mb:.1f} MB  {summary.shown:,} of {summary.matching:,} images", end="")
    print(f" (all: --images {summary.matching})" if summary.shown < summary.matching else "")
    if not options.no_open and _has_screen() and not options.output.startswith("s3://"):
        webbrowser.open(Path(options.output).resolve().as_uri())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca view", description="Write a region table as one HTML page and open it."
    )
    parser.add_argument(
        "table", metavar="TABLE", help=("region table: a parquet file or a folder of them, local or s3://")
    )
    parser.add_argument(
        "--output", metavar="FILE.html", default="gallery.html", help=("default: gallery.html in the current folder")
    )
    parser.add_argument(
        "--images", metavar="N", type=int, default=200, help="maximum images on the page, evenly spaced; default: 200"
    )
    parser.add_argument(
        "--filter",
        metavar="WHAT",
        default="",
        help="flagged, labeled, quarantined, unlabeled, or a pattern of image ids such as 'sa_22*'; default: all",
    )
    parser.add_argument("--no-open", action="store_true", help="only write the page")
    return parser


def _has_screen() -> bool:
    """Return whether a graphical browser can open; otherwise a text browser might take over the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
