"""Two approximations of inference that are not in the paper, both off by default."""

import torch
from torch import Tensor

from ..layers.cost_map import cost_map


def nearest_classes(embedding: Tensor, text: Tensor, count: int) -> Tensor:
    """Return the classes that come nearest to being the best one somewhere (``TEST.PREREJECT``).

    At each position a class lies behind the best one by the difference of their mean cosines. The
    classes whose smallest difference is smallest are returned.

    Args:
        embedding: (1, C, H, W), of any length.
        text: (T, P, C), unit vectors; the cosine of a class is the mean over its templates.
        count: at most T.

    Returns:
        (count,) ascending class indices.

    Raises:
        ValueError: there is more than one image.
    """
    if len(embedding) != 1:
        raise ValueError(
            f"TEST.PREREJECT works on one image at a time, not on {len(embedding)}: pass one "
            "image, or set TEST.PREREJECT 0"
        )
    with torch.autocast(embedding.device.type, enabled=False):
        mean = text.float().mean(dim=1, keepdim=True)
        cosine = cost_map(embedding.float(), mean)[0, :, 0].flatten(1)  # (T, H * W)
    difference = (cosine.amax(dim=0) - cosine).amin(dim=1)  # 0 for the best class of a position
    return difference.topk(count, largest=False).indices.sort().values


def template_basis(text: Tensor, channels: int) -> Tensor:
    """Return the first principal components of the templates (``TEST.TEMPLATE_CHANNELS``).

    The templates of a class are nearly collinear, so few components hold nearly all of them: with
    U the basis, ``text`` is nearly ``U U^T text``. The error is the part of the dropped components,
    none for r = P.

    Args:
        text: (T, P, C).
        channels: r, 1..P.

    Returns:
        U (P, r), float32, with orthonormal columns; the components are not centred.
    """
    with torch.autocast(text.device.type, enabled=False):
        gram = torch.einsum("tpc,tqc->pq", text.float(), text.float())
        # In float64, on the CPU, since not every device has it; eigenvalues ascend.
        vectors = torch.linalg.eigh(gram.cpu().double()).eigenvectors
    return vectors[:, -channels:].float().to(text.device)


def project_templates(text: Tensor, channels: int) -> Tensor:
    """Project (T, P, C) embeddings on their first principal components: ``U U^T text``."""
    basis = template_basis(text, channels)
    with torch.autocast(text.device.type, enabled=False):
        return torch.einsum("pr,qr,tqc->tpc", basis, basis, text.float())
