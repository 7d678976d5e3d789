"""NIfTI files: checked before they are unpacked."""
