"""`ureca convert`: convert a region table to another format, or back."""

import argparse

from ureca.corpus.formats.convert import FORMATS, export_regions, import_regions


def convert_table(argv: list[str]) -> None:
    """Run the subcommand.

    Raises:
        UrecaError: the input is missing or malformed, or the output can't be written.
    """
    options = _parser().parse_args(argv)
    convert = import_regions if options.output.endswith(".parquet") else export_regions
    done = convert(options.input, options.output, options.format, options.images)
    print(f"{options.output}  {done.images:,} images  {done.regions:,} regions  {done.captions:,} captions")
    if done.left_out:
        print(f"skipped: {done.left_out:,} images without content for this format")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ureca convert",
        description="Convert a region table to a format of other tools; or, if OUTPUT ends in .parquet, convert such "
        "a format to a region table.",
    )
    parser.add_argument("input", metavar="INPUT", help="region table, or file or folder of the format; local or s3://")
    parser.add_argument("output", metavar="OUTPUT", help="output; .parquet: a region table")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help="the format besides the region table")
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help=(
            "folder that image file names are relative to; required to read ureca_jsonl, where it holds photos and "
            "masks"
        ),
    )
    return parser
