"""Key names of the released SED checkpoints."""


def _released_prefixes() -> dict[str, str]:
    """Map the prefix of each released module to ours."""
    released, ours = "sem_seg_head.predictor.transformer.", "sem_seg_head.decoder."
    prefixes = {
        "sem_seg_head.predictor.clip_model.": "backbone.clip.",
        f"{released}conv1.": f"{ours}cost_conv.",
        f"{released}head.": f"{ours}head.",
    }
    for i in range(3):
        level, block = f"{ours}levels.{i}.", f"{released}decoder{i + 1}."
        prefixes |= {
            f"{released}head{i}.": f"{level}aux_head.",
            f"{released}decoder_guidance_projection.{i}.": f"{level}image_guidance.",
            f"{released}decoder_corr_guidance_projection.{i}.": f"{level}cost_guidance.",
            f"{block}cnext.": f"{level}fam.spatial.",
            f"{block}attention.": f"{level}fam.classes.",
            f"{block}attention.MLP.": f"{level}fam.classes.mlp.",
            f"{block}up.": f"{level}sfm.up.",
            f"{block}conv.double_conv.0.": f"{level}sfm.conv1.",
            f"{block}conv.double_conv.1.": f"{level}sfm.norm1.",
            f"{block}conv.double_conv.3.": f"{level}sfm.conv2.",
            f"{block}conv.double_conv.4.": f"{level}sfm.norm2.",
        }
    return prefixes


#: Key prefix of a released checkpoint -> ours; of two that match, the longer one counts.
RELEASED_PREFIXES = _released_prefixes()
