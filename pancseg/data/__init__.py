"""Prepared folders as training data: manifest, splits, transforms, cache and data module."""
