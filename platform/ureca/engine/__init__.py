"""The only adapter to vLLM: captions of regions, and chats about images.

Importing this package imports neither vLLM nor torch; starting an engine does.
"""
