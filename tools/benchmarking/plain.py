"""The plain form of SED, for tests and benchmarks only.

The straightforward reading of the paper: timm's own forward, all classes projected at all levels,
guidance repeated for every class, contiguous memory, 77-token texts, all scores held. It works on
the parameters of the package's own modules, so both forms have the same weights by construction.
"""

import copy

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn import functional as F


def plain_copy(module):
    """The module with parameters of its own in contiguous memory.

    torch follows the layout of the weights too, so that a plain convolution with channels-last
    weights would not be plain.
    """
    module = copy.deepcopy(module)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()
    return module


@torch.no_grad()
def plain_segment(visual, decoder, images: Tensor, text: Tensor, size, *, pooling, top_k: int = 0):
    """Segment stretched images, one at a time, and hold all scores of all of them.

    Args:
        visual: open_clip's image tower.
        decoder: the package's decoder.
        images: (B, 3, R, R) of :func:`plain_preprocess`.
        text: (T, P, C) unit vectors.
        size: (height, width) of the output.
        pooling: the (height, width) of class attention's cells.
        top_k: early rejection keeps this many classes per pixel; 0 turns it off.

    Returns:
        (B, T, height, width) scores in [0, 1], 0 for rejected classes.
    """
    scores = torch.zeros(len(images), len(text), *size, device=images.device)
    features = plain_encode(visual, images)
    for i, own in enumerate(scores):
        cost = plain_cost_map(features["embedding"][i : i + 1], text)
        skips = [features[name][i : i + 1] for name in ("res4", "res3", "res2")]
        logits, survivors = plain_decode(decoder, cost, skips, pooling, top_k)
        own[survivors] = plain_upsample(logits, size)[0]
    return scores


def plain_preprocess(image: Tensor, mean: Tensor, std: Tensor, resolution: int) -> Tensor:
    """(3, H, W) RGB in 0..255 -> (1, 3, resolution, resolution), normalised and stretched."""
    image = ((image - mean) / std).unsqueeze(0)
    size = (resolution, resolution)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def plain_encode(visual, images: Tensor) -> dict[str, Tensor]:
    """(B, 3, R, R) -> "res2" to "res5" and the dense "embedding", by timm's forward."""
    last, stages = visual.trunk.forward_intermediates(images.contiguous())
    dense = visual.head(visual.trunk.head.norm(last).permute(0, 2, 3, 1))
    features = {f"res{i + 2}": stage for i, stage in enumerate(stages)}
    features["embedding"] = dense.permute(0, 3, 1, 2).contiguous()
    return features


def plain_upsample(logits: Tensor, size) -> Tensor:
    """(B, T, h, w) logits -> (B, T, *size) scores."""
    scores = logits.float().sigmoid()
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)


def plain_cost_map(embedding: Tensor, text: Tensor) -> Tensor:
    """(B, C, H, W) and (T, P, C) -> (B, T, P, H, W), see ``sed_d2.modeling.sed.head.cost_map``."""
    return torch.einsum("bchw,tpc->btphw", F.normalize(embedding, dim=1), text)


def plain_decode(decoder, cost_map: Tensor, image_features, pooling=(1, 1), top_k: int = 0):
    """Logits (B, T', 8H, 8W) of the surviving classes and their indices (T',)."""
    batch, classes = cost_map.shape[:2]
    cost = cost_map.flatten(0, 1).contiguous()
    guidances = []
    for level in decoder.levels:
        guidances.append(level.cost_guidance(guidances[-1] if guidances else cost))
    x = decoder.cost_conv(cost)
    survivors = torch.arange(classes, device=x.device)
    for i, (level, feature) in enumerate(zip(decoder.levels, image_features, strict=True)):
        if top_k and top_k < len(x):
            keep = plain_union_of_top_k(level.aux_head(x)[:, 0], top_k)
            x, survivors = x[keep], survivors[keep]
        image = level.image_guidance(feature).repeat_interleave(len(x) // batch, dim=0)
        x = plain_fam(level.fam, x, batch, pooling)
        x = plain_sfm(level.sfm, x, image, guidances[i][survivors] if top_k else guidances[i])
    logits = decoder.head(x)
    return logits.reshape(batch, -1, *logits.shape[-2:]), survivors


def plain_union_of_top_k(logits: Tensor, k: int) -> Tensor:
    """The classes among the k best of at least one pixel of (T, H, W), ascending."""
    return logits.argsort(dim=0, descending=True)[:k].unique()


def plain_fam(fam, x: Tensor, batch: int, pooling) -> Tensor:
    """Spatial, then class fusion of (B * T, C, H, W)."""
    block = fam.spatial
    y = block.norm(block.dwconv(x).permute(0, 2, 3, 1))
    y = block.gamma * block.pwconv2(F.gelu(block.pwconv1(y)))
    x = x + y.permute(0, 3, 1, 2)

    layer = fam.classes
    pooled = F.avg_pool2d(x, tuple(pooling))
    height, width = pooled.shape[-2:]
    # One sequence of T tokens a position.
    tokens = pooled.unflatten(0, (batch, -1)).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (BHW, T, C)
    tokens = tokens + plain_attention(layer.attention, layer.norm1(tokens))
    tokens = tokens + layer.mlp(layer.norm2(tokens))
    y = tokens.view(batch, height, width, -1, x.shape[1]).permute(0, 3, 4, 1, 2).flatten(0, 1)
    return x + F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True)


def plain_attention(layer, tokens: Tensor) -> Tensor:
    """Linear attention over the T tokens of (N, T, C)."""
    q, k, v = (
        projection(tokens).unflatten(-1, (layer.num_heads, -1))  # (N, T, heads, d)
        for projection in (layer.q, layer.k, layer.v)
    )
    q, k = F.elu(q) + 1, F.elu(k) + 1
    kv = torch.einsum("nthd,nthe->nhde", k, v)
    normaliser = torch.einsum("nthd,nhd->nth", q, k.sum(dim=1)) + layer.eps
    return (torch.einsum("nthd,nhde->nthe", q, kv) / normaliser.unsqueeze(-1)).flatten(2)


def plain_sfm(sfm, x: Tensor, image: Tensor, cost: Tensor) -> Tensor:
    """Upsample, concatenate the guidances of every class, two convolutions."""
    y = torch.cat([sfm.up(x), image, cost], dim=1)
    y = F.relu(sfm.norm1(sfm.conv1(y)))
    return F.relu(sfm.norm2(sfm.conv2(y)))


def plain_text(clip, tokenizer, classes) -> Tensor:
    """(T, P, C) unit embeddings, one class and 77 tokens at a time."""
    device = clip.positional_embedding.device
    embeddings = []
    for synonyms in classes:
        prompts = [[t(name) for t in OPENAI_IMAGENET_TEMPLATES] for name in synonyms]
        of_names = [
            F.normalize(clip.encode_text(tokenizer(texts).to(device)), dim=-1) for texts in prompts
        ]
        embeddings.append(F.normalize(torch.stack(of_names).mean(dim=0), dim=-1))
    return torch.stack(embeddings)
