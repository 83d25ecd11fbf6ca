"""Reading and writing of medical images: NIfTI, DICOM, NRRD, MetaImage, MGZ and TIFF stacks."""
