"""The arithmetic floor of each stage, and what the machine was measured to do.

Multiply-adds are those of the cheapest exact form: image guidance once for all classes, ``up`` and
its part of conv1 composed, cost guidance of surviving classes alone; convolutions are direct ones,
below which the frequency domain or Winograd's method can go. Bytes are what cannot stay in
a cache: each part that needs a whole map, or all classes, of another part reads and writes it once.
Element-wise functions, norms and sums are not counted, and neither are weights read again.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from sed_d2.modeling.fast.linear import linear


class Work(NamedTuple):
    """What a stage has to do: multiply-adds, and bytes read and written in main memory."""

    multiply_adds: int = 0
    bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self[0] + other[0], self[1] + other[1])


class Machine(NamedTuple):
    """What a machine was measured to do, in multiply-adds and bytes a second.

    Attributes:
        multiply_adds: of a square matrix product, by dtype.
        bytes: of a copy between two places in main memory, read and written.
    """

    multiply_adds: dict[str, float]
    bytes: float

    def floor(self, work: Work, dtype: str) -> float:
        """The seconds that this work takes at least, where arithmetic and copying overlap."""
        return max(work.multiply_adds / self.multiply_adds[dtype], work.bytes / self.bytes)


def weights(module: nn.Module) -> int:
    """Weights of convolutions and linear layers: multiply-adds a position that they are used at.

    A position is one of the output, of a transposed convolution one of the input.
    """
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, kinds))


def encoder_work(visual: nn.Module, size: Sequence[int], batch: int, itemsize: int = 4) -> Work:
    """The image tower, dense embedding included.

    Args:
        visual: open_clip's ConvNeXt tower.
        size: (height, width) in pixels.
        batch: B.
        itemsize: bytes of a number.
    """
    trunk = visual.trunk
    work, last = Work(), 0
    for info, stage in zip(trunk.feature_info, trunk.stages, strict=True):
        last = batch * size[0] * size[1] // info["reduction"] ** 2
        # Each block reads its map and writes it.
        passes = 2 * len(stage.blocks) * info["num_chs"]
        work += Work(last * weights(stage), itemsize * (last * passes + weights(stage)))
    first = batch * size[0] * size[1] // trunk.feature_info[0]["reduction"] ** 2
    return work + Work(first * weights(trunk.stem)) + Work(last * weights(visual.head))


def text_work(clip: nn.Module, lengths: Sequence[int], itemsize: int = 4) -> Work:
    """The text tower on prompts of these lengths in tokens.

    The in-projection of attention is a bare parameter; attention itself is L² of the width twice,
    of which a causal tower needs half.
    """
    blocks = clip.transformer.resblocks
    width = clip.text_projection.shape[0]
    each = weights(blocks) + sum(block.attn.in_proj_weight.numel() for block in blocks)
    products = sum(n * each + len(blocks) * width * n * (n + 1) for n in lengths)
    products += len(lengths) * clip.text_projection.numel()
    return Work(products, itemsize * sum(lengths) * width * 2 * len(blocks))


def cost_map_work(
    classes: int, templates: int, width: int, positions: int, itemsize: int = 4
) -> Work:
    """Cosine similarities of ``positions`` vectors with every class and template."""
    numbers = classes * templates * (width + positions) + width * positions
    return Work(classes * templates * width * positions, itemsize * numbers)


def labels_work(classes: int, size: Sequence[int], output: Sequence[int]) -> Work:
    """Bilinear upsampling of float32 scores from one (height, width) to another, and argmax."""
    pixels = output[0] * output[1]
    # Labels are int64.
    return Work(4 * classes * pixels, 4 * classes * size[0] * size[1] + 8 * pixels)


def decoder_work(
    decoder: nn.Module,
    alive: Sequence[int],
    grid: Sequence[int],
    *,
    rejects: bool,
    plain: bool = False,
    itemsize: int = 4,
) -> list[Work]:
    """The decoder of one image: what comes before the first level, then each level.

    Before the first level is the 7×7 convolution; the auxiliary head that chooses a level's
    survivors counts as the end of what comes before the level.

    Args:
        decoder: the package's decoder.
        alive: the vocabulary's size and the classes at each level.
        grid: (H, W) of the cost map.
        rejects: whether the auxiliary heads choose survivors.
        plain: count the multiply-adds of the plain form instead.
        itemsize: bytes of a number.
    """
    positions = grid[0] * grid[1]
    conv = decoder.cost_conv
    total = alive[0]
    # Ours chooses by nine outputs of the convolution, and makes all of them for survivors alone.
    chooses = rejects and not plain
    embedded = alive[1] if chooses else total
    numbers = embedded * positions * (conv.in_channels + conv.out_channels)
    works = [Work(embedded * positions * weights(conv), itemsize * numbers)]
    if chooses:
        taps = 9 * weights(conv) // conv.out_channels
        works[0] += Work(total * positions * taps, itemsize * total * positions * conv.in_channels)
    guided = 0  # multiply-adds of plain cost guidance, all levels at the start
    for i, (level, before, classes) in enumerate(
        zip(decoder.levels, alive[:-1], alive[1:], strict=True)
    ):
        n = positions * 4**i
        last = i + 1 == len(decoder.levels)
        sfm, attention = level.sfm, level.fam.classes.attention
        width, out = sfm.conv1.in_channels, sfm.conv1.out_channels
        dim = sfm.up.in_channels
        guidance = width - dim
        if rejects and (i or plain):
            works[-1] += Work(before * n * weights(level.aux_head), itemsize * before * n * dim)
        # K^T V and q (K^T V) have dim / heads products a channel, q sum(K) has one.
        each = weights(level.fam) + 2 * dim * dim // attention.num_heads + dim
        if plain:
            each += weights(sfm.up) + 4 * weights(sfm.conv1)
            once = 0
        else:
            # A 4×4 transposed convolution in place of up and conv1's part of it; cost guidance's.
            each += 4 * 4 * dim * out + 4 * 9 * guidance * out
            each += weights(level.cost_guidance)
            once = 4 * n * 9 * guidance * out
        each += 4 * weights(sfm.conv2) + (4 * weights(decoder.head) if last else 0)
        once += 4 * n * weights(level.image_guidance)
        guided += total * n * weights(level.cost_guidance)
        # FAM's two parts read and write; SFM reads, with the cost map, and writes.
        moved = 5 * n * dim + 4 * n * (1 if last else out) + positions * conv.in_channels
        image = 4 * n * level.image_guidance[0].in_channels
        works.append(Work(classes * n * each + once, itemsize * (classes * moved + image)))
    if plain:
        works[0] += Work(guided)
    return works


def measure_machine(device: torch.device, dtypes: Sequence[str]) -> Machine:
    """Time a large matrix product in each dtype, and a large copy; the best of ten counts."""
    size = 1024 if device.type == "cpu" else 8192
    rates = {}
    for dtype in dtypes:
        a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
        rates[dtype] = size**3 / _fastest(lambda a=a, b=b: linear(a, b), device)
    numbers = 1 << (26 if device.type == "cpu" else 30)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)
    return Machine(rates, copied)


def _fastest(function: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Seconds of the fastest run, which nothing else on the machine held up."""
    seconds = []
    for _ in range(repeats):
        start = clock(device)
        function()
        seconds.append(clock(device) - start)
    return min(seconds)


def clock(device: torch.device) -> float:
    """Seconds of a clock, when all that was started on the device is done."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()
