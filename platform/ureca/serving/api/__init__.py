"""The HTTP API: request parsing, decoding, handlers and error responses."""
