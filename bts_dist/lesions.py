"""Lesions found, imagined and missed: how many separate tumours a prediction detects, whatever their size.

A lesion is a connected component of a mask in 3D, where voxels that share a face, an edge or a corner belong
together (26 neighbours).
"""

import numpy as np
from scipy import ndimage

from bts_dist.counts import Counts, Mask
from bts_dist.surface import bounding_box

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def count_lesions(prediction_NHW: Mask, truth_NHW: Mask) -> Counts:
    """Count found, imagined and missed lesions of one patient: int64 (3,), as TP, FP and FN.

    A true lesion is found when at least one voxel of it is predicted, else it is missed; a predicted lesion that
    holds no voxel of the truth is imagined.  So says the evaluation code of the ISLES'22 challenge
    (``compute_lesion_f1_score``, https://github.com/ezequieldlrosa/isles22; de la Rosa et al. 2025), whose F1 is
    2 TP / (2 TP + FP + FN).  A threshold of IoU would mix outlines into the question whether a tumour was seen
    at all; how well it is outlined is what Dice and the surface distances say.  So a prediction that joins two
    lesions finds both, and one in two pieces counts once.
    """
    union = prediction_NHW | truth_NHW
    if not union.any():
        return np.zeros(3, dtype=np.int64)
    box = bounding_box(union)
    prediction, truth = prediction_NHW[box], truth_NHW[box]
    true, num_true = ndimage.label(truth, _NEIGHBOURS)
    predicted, num_predicted = ndimage.label(prediction, _NEIGHBOURS)
    both = prediction & truth
    found = len(np.unique(true[both]))
    return np.array(
        [found, num_predicted - len(np.unique(predicted[both])), num_true - found], dtype=np.int64
    )
