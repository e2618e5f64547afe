"""Prompt templates."""

import open_clip

#: The 80 ImageNet templates in open_clip's order; the order is part of the released weights.
PROMPT_TEMPLATES = tuple(open_clip.OPENAI_IMAGENET_TEMPLATES)
