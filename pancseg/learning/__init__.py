"""Networks, losses and metrics: knows tensors, no files."""
