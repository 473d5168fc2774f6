"""URECA on Ray: a unique caption for every region of every image."""
