"""Region proposals: masks for photos that come without masks."""
