"""ASGI middleware: authentication, body limits, access log, draining."""
