"""Where batches and models come from."""
