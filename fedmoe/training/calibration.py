"""How far many clients' confidence is from their accuracy.

Expected calibration error, Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural
networks", arXiv 1706.04599, equation 3: predictions are sorted into bins by the probability that
they give to the class that they name, and each bin's confidence is held against its accuracy.

Letters: C clients, n samples of a client, O outputs, M bins.
"""

from torch import Tensor

BINS = 15  # of equal width, as in the paper


def calibration_gaps(y_COn: Tensor, correct_Cn: Tensor, real_Cn: Tensor) -> Tensor:
    """Each bin's correct predictions less the sum of their confidences, (C, M).

    Args:
        y_COn: logits.
        correct_Cn: 1 where the most probable class is the right one.
        real_Cn: which samples are not padding.
    """
    top_C1n = y_COn.max(dim=1, keepdim=True).values
    confidence_Cn = (y_COn - top_C1n).exp().sum(dim=1).reciprocal()
    # Bin m is ((m - 1) / M, m / M]; NaN, of padding or a model that diverged, goes to any.
    bin_Cn = (confidence_Cn * BINS).nan_to_num().ceil().clamp(1, BINS).long() - 1
    gap_Cn = (correct_Cn - confidence_Cn).where(real_Cn, 0.0)
    return gap_Cn.new_zeros(len(gap_Cn), BINS).scatter_add_(1, bin_Cn, gap_Cn)


def calibration_error(gap_CM: Tensor, count_C: Tensor) -> Tensor:
    """Mean distance of confidence from accuracy, each bin weighed by its samples, (C,) in [0, 1].

    Args:
        gap_CM: sums of `calibration_gaps` over all samples.
        count_C: how many samples there are; of none the error is 0.
    """
    return gap_CM.abs().sum(dim=1) / count_C.clamp_min(1)
