"""Training the captioner in three stages with Ray Train and DeepSpeed."""
