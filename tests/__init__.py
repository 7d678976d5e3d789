"""Tests drive the real entry points on small phantoms with answers known by hand."""
