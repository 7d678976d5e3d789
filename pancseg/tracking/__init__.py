"""Callbacks that tell people how training goes."""
