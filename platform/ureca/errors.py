"""Errors that the user can fix.

All share one base class. A job turns it into exit code 2 and one line on stderr, the labeling pipeline into a
quarantine row, the service into a 4xx. The message names the input, the finding and the remedy. Any exception that is
not a `UrecaError` is a bug in this project and keeps its traceback.
"""


class UrecaError(Exception):
    """Base of all errors that the user can fix. Takes one argument, the message."""


class ConfigError(UrecaError):
    """A configuration has an unknown key or an invalid value."""


class InputError(UrecaError):
    """A file, folder or request is missing, unreadable or malformed."""


class ImageError(InputError):
    """An image is missing, truncated, or of another size than recorded."""


class MaskError(InputError):
    """A mask can't be decoded, or is empty."""


class MaskSizeError(MaskError):
    """A mask was encoded at another size than its image has."""


class EmptyMaskError(MaskError):
    """A mask has the right form and covers no pixel."""


class StorageError(UrecaError):
    """A disk is full, or S3 refuses or does not answer; the file itself may be intact."""


class CheckpointError(UrecaError):
    """A checkpoint or model directory is incomplete or does not match its model."""
