"""`ureca token NAME`: create an access token for the HTTP API, and print its configuration."""

import re
from collections.abc import Sequence

from ureca.errors import ConfigError
from ureca.serving.middleware.auth import new_token


def print_token(argv: Sequence[str]) -> None:
    """Run the subcommand. Raises ConfigError: not exactly one valid name."""
    if len(argv) != 1 or not re.fullmatch(r"[\w.-]+", argv[0]):
        raise ConfigError("ureca token NAME: give one name (letters, digits, '.', '_', '-'), that of the token's user.")
    token, digest = new_token()
    print(f"token, shown this once:  {token}")
    print("under args: in serve_apps/captioner.yaml:")
    print(f"  access_tokens:\n    - name: {argv[0]}\n      sha256: {digest}")
