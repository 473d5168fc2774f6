"""Nano: an InternVL of a few million parameters, its synthetic scenes, pretraining and benchmark.

Only jobs, the demo and tests import this package. Its weights are package data, so presets can name them.
"""
