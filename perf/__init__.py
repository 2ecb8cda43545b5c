"""Scripts that measure the pipeline."""
