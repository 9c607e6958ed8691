"""Training: the only caller of deepspeed.initialize."""
