"""Scores of region captions: the field's metrics, attribute accuracy, uniqueness, and their intervals."""
