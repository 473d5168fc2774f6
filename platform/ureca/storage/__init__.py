"""Files, folders and JSON lines, local or in S3."""
