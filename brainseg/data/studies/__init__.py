"""Single scans to segment, as they come: a folder or stack of TIFF slices, NIfTI, DICOM. `finding.find` says which."""
