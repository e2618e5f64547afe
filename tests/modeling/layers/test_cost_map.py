import torch
from torch.nn import functional as F

from sed_d2.modeling.layers.cost_map import cost_map


def test_it_is_the_cosine():
    embedding = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # length 5
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-0.8, 0.6]]])
    expected = torch.tensor([[0.6, 0.8], [1.0, 0.0]]).view(1, 2, 2, 1, 1)
    torch.testing.assert_close(cost_map(embedding, text), expected)


def test_axes_are_image_class_template_row_and_column():
    torch.manual_seed(0)
    embedding, text = torch.randn(3, 4, 2, 5), F.normalize(torch.randn(6, 7, 4), dim=-1)
    cost = cost_map(embedding, text)
    assert cost.shape == (3, 6, 7, 2, 5)
    expected = F.cosine_similarity(embedding[2, :, 1, 3], text[5, 6], dim=0)
    torch.testing.assert_close(cost[2, 5, 6, 1, 3], expected)


def test_the_length_is_taken_in_float32():
    embedding = torch.full((1, 2, 1, 1), 300.0).half()  # the squares overflow float16
    text = torch.tensor([[[0.6, 0.8]]])
    cost = cost_map(embedding, text)
    assert cost.dtype == torch.float16
    torch.testing.assert_close(cost.item(), 1.4 * 0.5**0.5, atol=1e-3, rtol=0)
