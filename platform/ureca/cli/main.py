"""The `ureca` command.

    ureca doctor           check this machine's installation; print remedies
    ureca caption PHOTO    caption regions of a photo with the packaged nano or your model
    ureca serve            serve the HTTP API on this machine
    ureca token NAME       create an access token for the HTTP API
    ureca view TABLE       browse a region table: images, regions, captions, quarantined images
    ureca convert IN OUT   convert a region table to COCO, JSONL or a `datasets` folder, or back
    ureca plan             check whether a training fits your GPUs, and estimate its duration

Labeling, training, evaluation and export are jobs: `python jobs/<job>.py --help`.
"""

import sys

from ureca.errors import ConfigError


def main() -> None:
    """Run the `ureca` command."""
    if sys.argv[1:] == ["doctor"]:  # doctor must work before any package is installed
        from ureca.cli import doctor

        sys.exit(doctor.main())
    from ureca.runs import run_job

    run_job(lambda: run(sys.argv[1:]))


def run(argv: list[str]) -> None:
    """Run one subcommand.

    Raises:
        ConfigError: unknown subcommand.
    """
    command, *rest = argv or ["--help"]
    if command in ("--help", "-h"):
        print(__doc__)
    elif command == "caption":
        from ureca.cli.caption import caption_photo

        caption_photo(rest)
    elif command == "view":
        from ureca.cli.view import view_table

        view_table(rest)
    elif command == "convert":
        from ureca.cli.convert import convert_table

        convert_table(rest)
    elif command == "plan":
        from ureca.cli.plan import plan

        sys.exit(plan(rest))
    elif command == "serve":
        from ureca.cli.serve import serve_locally

        serve_locally(rest)
    elif command == "token":
        from ureca.cli.token import print_token

        print_token(rest)
    else:
        raise ConfigError(
            f"ureca {command}: no such command. Commands: doctor, caption, serve, token, view, convert, plan. See "
            "ureca --help."
        )


if __name__ == "__main__":
    main()
