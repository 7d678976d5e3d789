"""Folders of scans taken up: converted by many at once, checked, entered in a manifest."""
