"""HunyuanVideo in diffusers' format: opened, shared between roles, exported."""
