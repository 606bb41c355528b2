"""A mask as a derived DICOM image on the plane of its original.

It is Secondary Capture (PS3.3 A.8.1, as a standard extended class, for it has a plane): every viewer shows it, and
laid over the series it fits.
"""

import uuid

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from bts_dist.study import INSIDE

_COPIED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientPosition",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceLocation",
    "Rows",
    "Columns",
    "InstanceNumber",
)
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
    "InstanceNumber",
)


def derived_mask(original: Dataset, mask_HW: NDArray[np.bool_]) -> Dataset:
    """The mask (H, W) of a slice as a data set to save: 8-bit grey of 0 and 255.

    Patient, study and plane are the original's; identifiers of series and instance follow from its own, so that the
    same mask has the same bytes.
    """
    mask = Dataset()
    for name in _COPIED:
        if name in original:
            mask.add(original[name])
    for name in _MAY_BE_EMPTY:
        if name not in mask:
            setattr(mask, name, None)
    mask.SOPClassUID = SecondaryCaptureImageStorage
    mask.SOPInstanceUID = _uid(original.SOPInstanceUID)
    mask.SeriesInstanceUID = _uid(original.SeriesInstanceUID)
    mask.SeriesNumber = int(original.get("SeriesNumber") or 0) + 1000
    mask.SeriesDescription = "Tumour mask by bts-dist"
    mask.Modality = "OT"
    mask.ConversionType = "WSD"
    mask.ImageType = ["DERIVED", "SECONDARY"]
    mask.DerivationDescription = "Tumour mask predicted by bts-dist: 255 inside, 0 outside. Not for diagnosis"
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = (
        original.SOPClassUID,
        original.SOPInstanceUID,
    )
    mask.SourceImageSequence = [source]
    mask.SamplesPerPixel, mask.PhotometricInterpretation = 1, "MONOCHROME2"
    mask.BitsAllocated, mask.BitsStored, mask.HighBit, mask.PixelRepresentation = 8, 8, 7, 0
    mask.BurnedInAnnotation = "NO"
    pixels = (mask_HW.astype(np.uint8) * np.uint8(INSIDE)).tobytes()
    mask["PixelData"] = pydicom.DataElement("PixelData", "OB", pixels + b"\0" * (len(pixels) % 2))
    mask.file_meta = FileMetaDataset()
    mask.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return mask


def _uid(original: str) -> str:
    """An identifier that is always the same for the same original (PS3.5 B.2: a UUID as a number)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'bts-dist mask of {original}').int}"
