"""`ureca convert`: a region table into a format that other tools read, or back."""

import argparse

from ureca.corpus.formats.convert import FORMATS, export_regions, import_regions


def convert_table(argv: list[str]) -> None:
    """The subcommand; see the module's docstring.

    Raises:
        UrecaError: what is to be converted is not there or not of its form, or can't be written.
    """
    options = _parser().parse_args(argv)
    convert = import_regions if options.output.endswith(".parquet") else export_regions
    done = convert(options.input, options.output, options.format, options.images)
    print(f"{options.output}  {done.images:,} images  {done.regions:,} regions  {done.captions:,} captions")
    if done.left_out:
        print(f"left out: {done.left_out:,} images that have nothing to write in this format")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca convert",
        description="Write a region table in a format that other tools read; or, where OUTPUT ends in .parquet, "
        "write what a file of such a format holds as a region table.",
    )
    parser.add_argument("input", metavar="INPUT", help="region table, or file or folder of the format; or s3://…")
    parser.add_argument("output", metavar="OUTPUT", help="what to write; .parquet: a region table")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help="the one that is not the table's")
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder that image files are named relative to; needed to read ureca_jsonl: the photos and their masks",
    )
    return parser
