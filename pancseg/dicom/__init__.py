"""DICOM and its LPS coordinates: series as volumes, SEG and RTSTRUCT as label maps, in RAS."""
