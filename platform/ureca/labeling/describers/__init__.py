"""Describers: they write captions from pixels, with a vLLM engine, or through an OpenAI-compatible endpoint."""
