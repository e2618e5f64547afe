"""Prompts of the training names: right names in random templates, wrong names."""

import open_clip
import torch

from sed_d2.shapes.clip_model import NAME
from sed_d2.shapes.prompts import PromptSampler
from sed_d2.shapes.words import TRAIN_CLASSES


def test_each_name_is_in_its_prompt():
    torch.manual_seed(0)
    tokenizer = open_clip.get_tokenizer(NAME)
    texts = [tokenizer.decode(row.tolist()) for row in PromptSampler(tokenizer).sample()]
    assert all(name in text for name, text in zip(TRAIN_CLASSES, texts, strict=True))
    # 75 draws from 80 templates.
    templates = {text.replace(name, "") for name, text in zip(TRAIN_CLASSES, texts, strict=True)}
    assert len(templates) > 20


def test_wrong_names_have_other_words_in_the_same_templates():
    torch.manual_seed(0)
    prompts = PromptSampler(open_clip.get_tokenizer(NAME))
    known = {tuple(tokens) for tokens in prompts.tokens.flatten(0, 1).tolist()}
    wrong = prompts.sample_wrong(50)
    assert wrong.shape == (50, prompts.tokens.shape[2])
    assert not known & {tuple(tokens) for tokens in wrong.tolist()}
    replaced = (wrong[:, None] != prompts.tokens.flatten(0, 1)).sum(-1).amin(1)
    assert replaced.min() >= 1 and replaced.max() <= 3  # at most the words of the name
