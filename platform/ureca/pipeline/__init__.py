"""Resumable Ray Data runtime: each image of a corpus becomes exactly one row of a region table."""
