"""Gradient checkpointing: the same losses and gradients from less memory."""

from contextlib import contextmanager

import open_clip
import torch
import torch.utils.checkpoint
from open_clip.model import CLIP

from sed_d2 import get_sed_cfg
from sed_d2.modeling import SEDHead
from sed_d2.modeling.clip.build import build_clip
from sed_d2.modeling.clip.convnext import CLIPConvNeXt
from sed_d2.modeling.layers import checkpointed
from sed_d2.modeling.layers.checkpointed import set_checkpoints
from sed_d2.modeling.losses import sem_seg_loss
from sed_d2.modeling.sed.decoder import GradualFusionDecoder


class SavedBytes:
    """Counts the bytes that autograd and checkpoints save for the backward pass."""

    def __init__(self, monkeypatch, *parameters):
        self.storages = {}
        self.ignored = {p.untyped_storage()._cdata for p in parameters}
        original = torch.utils.checkpoint.checkpoint

        def checkpoint(function, *args, **kwargs):
            for arg in args:
                if torch.is_tensor(arg):
                    self.save(arg)
            return original(function, *args, **kwargs)

        for module in (checkpointed, torch.utils.checkpoint):  # timm asks for the latter
            monkeypatch.setattr(module, "checkpoint", checkpoint)

    def save(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.ignored:
            # Held, so that no later tensor gets its address.
            self.storages[storage._cdata] = storage
        return tensor

    @contextmanager
    def count(self):
        self.storages.clear()
        with torch.autograd.graph.saved_tensors_hooks(self.save, lambda tensor: tensor):
            yield
        self.bytes = sum(storage.nbytes() for storage in self.storages.values())


def gradients(module):
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def assert_same(ours, plain):
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-6)


def test_the_trunk(monkeypatch):
    clip = build_clip("shapes_convnext_atto")
    images = torch.rand(2, 3, 64, 64)
    saved = SavedBytes(monkeypatch, *clip.parameters())
    runs = []
    for checkpoints in (False, True):
        backbone = CLIPConvNeXt(clip=clip, checkpoints=checkpoints).train()
        torch.manual_seed(0)  # drop path
        with saved.count():
            features = backbone(images)
        loss = sum(feature.square().mean() for feature in features.values())
        loss.backward()
        runs.append((loss.item(), gradients(clip), saved.bytes))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[1][1], runs[0][1])
    assert runs[1][2] <= 0.55 * runs[0][2]


def test_the_decoder(monkeypatch):
    torch.manual_seed(0)
    runs = []
    decoder = GradualFusionDecoder(80, 32, [32, 16, 16], [16, 8, 8], [8, 8, 8], [5, 5, 5], 4)
    saved = SavedBytes(monkeypatch, *decoder.parameters())
    cost = torch.rand(2, 3, 80, 8, 8, requires_grad=True)
    features = [torch.randn(2, 8, side, side) for side in (16, 32, 64)]
    for checkpoints in (False, True):
        set_checkpoints(decoder, checkpoints)
        with saved.count():
            output = decoder(cost, features, pooling=(2, 2), auxiliary=True)
        loss = sum(logits.square().mean() for logits in (output.logits, *output.auxiliary))
        loss.backward()
        runs.append((loss.item(), {**gradients(decoder), "cost": cost.grad}, saved.bytes))
        cost.grad = None
    assert runs[0][0] == runs[1][0]
    assert_same(runs[1][1], runs[0][1])
    assert runs[1][2] <= 0.55 * runs[0][2]


def test_the_keys_reach_both(tiny_model):
    inputs = [
        {"image": 255 * torch.rand(3, 64, 64), "sem_seg": torch.randint(0, 3, (64, 64))}
        for _ in range(2)
    ]
    runs = []
    for on in (False, True):
        opts = ("MODEL.CLIP.CHECKPOINT", on, "MODEL.SEM_SEG_HEAD.CHECKPOINT", on)
        model = tiny_model(*opts).train()
        assert model.sem_seg_head.decoder.levels[1].sfm.checkpoints is on
        assert {stage.grad_checkpointing for stage in model.backbone.clip.visual.trunk.stages} == {
            on
        }
        torch.manual_seed(0)
        losses = model(inputs)
        sum(losses.values()).backward()
        runs.append(({n: x.item() for n, x in losses.items()}, gradients(model)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[1][1], runs[0][1])


def test_l_trains_on_an_image_of_768_pixels_in_less_than_40_gigabytes(monkeypatch):
    """By account, on tensors without memory, with COCO-Stuff's 171 classes.

    Counted are what is kept for the backward pass, the parameters, and the gradients and AdamW's
    two moments of those that are trained; not the temporaries of the layer that is being computed.
    """
    totals = []
    for on in (False, True):
        opts = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.CHECKPOINT", on]
        cfg = get_sed_cfg("convnextL_768.yaml", [*opts, "MODEL.SEM_SEG_HEAD.CHECKPOINT", on])
        with torch.device("meta"):
            clip = CLIP(**open_clip.get_model_config(cfg.MODEL.CLIP.NAME))
            backbone = CLIPConvNeXt(clip=clip, checkpoints=on)
            model = torch.nn.ModuleList([backbone, SEDHead(cfg, backbone.output_shape())]).train()
            saved = SavedBytes(monkeypatch, *model.parameters())
            text = torch.empty(171, 80, clip.text_projection.shape[1])
            target = torch.zeros(1, 768, 768, dtype=torch.long)
            with saved.count():
                output = model[1](backbone(torch.empty(1, 3, 768, 768)), text, auxiliary=True)
                for logits in (output.logits, *output.auxiliary):
                    sem_seg_loss(logits, target, 255)
        numbers = [p.numel() * (1 + 3 * p.requires_grad) for p in model.parameters()]
        totals.append(saved.bytes + 4 * sum(numbers))
    plain, checkpointed = totals
    assert plain < 40e9
    assert checkpointed < 0.55 * plain
