"""Handing a trained network on to those who have no pancseg."""
