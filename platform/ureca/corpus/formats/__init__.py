"""Converters between the region table and file formats of other tools."""
