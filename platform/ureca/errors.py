"""Errors that a user can do something about.

One base class for all of them. A job turns it into exit code 2 and one line on stderr, the labeling pipeline
into a quarantine row, the service into a 4xx. The text names the input, what was found, and the remedy.
Anything that is not a `UrecaError` is a fault of this project and keeps its traceback.
"""


class UrecaError(Exception):
    """Base of every error whose remedy lies with the user. Takes one argument, the message."""


class ConfigError(UrecaError):
    """A configuration names an unknown key or holds a value that can't work."""


class InputError(UrecaError):
    """A file, a folder or a request is missing, unreadable or not of the expected form."""


class ImageError(InputError):
    """An image is missing, truncated, or not of the size its records say."""


class MaskError(InputError):
    """A mask can't be decoded, or is empty."""


class MaskSizeError(MaskError):
    """A mask was encoded at another size than its image has."""


class EmptyMaskError(MaskError):
    """A mask has the right form and covers no pixel."""


class StorageError(UrecaError):
    """A disk is full, or S3 refuses or does not answer: nothing is wrong with the file asked for."""


class CheckpointError(UrecaError):
    """A checkpoint or a model directory is incomplete or does not fit what it is loaded into."""
