"""The `ureca` command: one module per subcommand."""
