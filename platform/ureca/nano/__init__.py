"""The toy world: a few-million-parameter InternVL, its drawn scenes, pretraining and benchmark.

Only jobs, the demo and tests import this package. Its weights are package data, so presets can name them.
"""
