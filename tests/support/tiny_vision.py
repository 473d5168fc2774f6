"""Tiny vision models of transformers with random weights, saved in the hub's layout.

Each has a few thousand weights.
"""

from pathlib import Path
from typing import Any

from ureca.torchvision_ops import declare_missing_operators

_DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def _randomize(network: Any) -> Any:
    """Draw larger random weights: with transformers' initial ones, outputs of such small models are nearly 0."""
    import torch

    torch.manual_seed(0)
    for name, buffer in network.named_buffers():
        if "positional_embedding" in name:
            buffer.normal_()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.25)
    return network


def save_sam(folder: Path) -> None:
    """Save a SAM model with its image processor."""
    declare_missing_operators()
    from transformers import SamConfig, SamImageProcessor, SamModel

    vision = {"hidden_size": 16, "output_channels": 16, "num_pos_feats": 8, "num_hidden_layers": 1, "mlp_dim": 16}
    vision |= {
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [0],
    }
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=_DECODER)
    _randomize(SamModel(config)).save_pretrained(folder)
    SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    ).save_pretrained(folder)


def save_sam2(folder: Path) -> None:
    """Save a SAM 2 model with its image processor."""
    declare_missing_operators()
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    backbone = {"hidden_size": 8, "image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1]}
    backbone |= {"embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 4]}
    backbone |= {"global_attention_blocks": [3], "window_size_per_stage": [4, 2, 2, 2]}
    backbone |= {"window_positional_embedding_background_size": [4, 4]}
    vision = {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=_DECODER)
    _randomize(Sam2Model(config)).save_pretrained(folder)
    processor = Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    processor.save_pretrained(folder)


def save_dinov2(folder: Path, side: int) -> None:
    """Save a DINOv2 model for images of side x side pixels, with its image processor."""
    declare_missing_operators()
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=side, patch_size=14, mlp_ratio=2
    )
    _randomize(Dinov2Model(config)).save_pretrained(folder)
    crop = {"height": side, "width": side}
    BitImageProcessor(size={"shortest_edge": 48}, crop_size=crop, image_mean=[0.5, 0.4, 0.3]).save_pretrained(folder)
