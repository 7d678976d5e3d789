"""Applying trained networks to scans that nobody has drawn on."""
