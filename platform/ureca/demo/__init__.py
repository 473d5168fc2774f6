"""The end-to-end demo: label, train, evaluate, serve and report on one machine."""
