"""Rebuilds the miniature HunyuanVideo from nothing: codec, text encoders, teacher, feature nets and model card."""
