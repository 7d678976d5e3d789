"""Networks, losses, augmentation and metrics: tensors in, tensors out, no files."""
