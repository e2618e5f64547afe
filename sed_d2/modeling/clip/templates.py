"""Prompt templates."""

import open_clip

#: The 80 ImageNet templates in open_clip's order; the order is part of the released weights.
#: open_clip's are lambdas, which cannot be pickled.
PROMPT_TEMPLATES = tuple(template("{}").format for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
