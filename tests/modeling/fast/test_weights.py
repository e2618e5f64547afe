import torch
from torch import nn

from sed_d2.modeling.fast.weights import in_dtype, is_patched, module_state


def small_module() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


def test_in_dtype_casts_a_copy():
    module = small_module()
    half = in_dtype(module, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in half.parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in module.parameters())
    for (name, cast), value in zip(half.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(cast, value.bfloat16()), name
    assert half[0].bias is None


def test_in_dtype_shares_what_has_the_dtype():
    module = small_module()
    assert in_dtype(module, torch.float32) is module
    module[1].bfloat16()
    assert in_dtype(module, torch.bfloat16)[1] is module[1]


def test_the_state_changes_with_every_part_and_parameter():
    module = small_module()
    seen = [module_state(module.modules())]
    assert module_state(module.modules()) == seen[0]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
            seen.append(module_state(module.modules()))
    module[0].weight = nn.Parameter(module[0].weight.clone())
    seen.append(module_state(module.modules()))
    module[0].bias = nn.Parameter(torch.zeros(4))  # there was none
    seen.append(module_state(module.modules()))
    before = module[1][0]  # held, so that its address is not used again
    module[1][0] = nn.ReLU()
    seen.append(module_state(module.modules()))
    assert before is not module[1][0]
    assert len(set(seen)) == len(seen) == 7


def test_parameters_made_in_inference_mode_always_count_as_changed():
    with torch.inference_mode():
        module = nn.Linear(2, 2)
    assert module_state([module]) != module_state([module])


def test_hooks_and_another_forward_are_patches():
    module = nn.Linear(2, 2)
    assert not is_patched(module)
    hook = module.register_forward_hook(lambda *_: None)
    assert is_patched(module)
    hook.remove()
    hook = module.register_forward_pre_hook(lambda *_: None)
    assert is_patched(module)
    hook.remove()
    module.forward = lambda x: x
    assert is_patched(module)
