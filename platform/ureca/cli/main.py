"""The `ureca` command.

    ureca doctor           what this machine has of what ureca needs, and the remedy for what is missing
    ureca caption PHOTO    caption regions of a photo, found or given, with the shipped nano or your own model
    ureca view TABLE       a region table as a page to look through: images, regions, captions, what was set aside
    ureca convert IN OUT   a region table into COCO, JSONL or a folder for `datasets`, or back
    ureca plan             whether a training fits the GPUs at hand, how long it takes, and what to change
    ureca serve            the HTTP API on this machine, with the shipped nano or your own model
    ureca token NAME       an access token for the HTTP API, and what its configuration says of it

Everything larger is a job: `python jobs/<job>.py --help`.
"""

import sys

from ureca.errors import ConfigError


def main() -> None:
    """Entry point of the `ureca` command."""
    if sys.argv[1:] == ["doctor"]:  # before anything that wants a package
        from ureca.cli import doctor

        sys.exit(doctor.main())
    from ureca.runs import run_job

    run_job(lambda: run(sys.argv[1:]))


def run(argv: list[str]) -> None:
    """Run one subcommand.

    Raises:
        ConfigError: there is no such subcommand.
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
        from ureca.serving.middleware.auth import print_token

        print_token(rest)
    else:
        raise ConfigError(
            f"ureca {command}: no such command. There are: doctor, caption, view, convert, plan, serve, token. "
            "See ureca --help."
        )


if __name__ == "__main__":
    main()
