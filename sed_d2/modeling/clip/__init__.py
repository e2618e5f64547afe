"""CLIP: image towers as backbones, and the text encoder."""
