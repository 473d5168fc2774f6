"""Region proposals: masks for photos without masks."""
