"""The captioner as a service: an HTTP API in front of vLLM engines, on Ray Serve.

    client ──HTTP──> Ingress (validates, decodes) ──by image digest──> Captioner replica (mask encoder, vLLM)

Importing this package imports neither Ray nor torch.
"""
