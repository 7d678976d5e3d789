"""Prepared folders: cases, groups, manifest, splits, transforms and the data module."""
