"""What a region looks like, measured from pixels and mask, and what a caption claims about it."""
