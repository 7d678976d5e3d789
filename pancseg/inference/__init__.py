"""Applying a trained network to whole cases."""
