"""DICOM images: headers gathered into series, slices placed in space, pixels as HU."""
