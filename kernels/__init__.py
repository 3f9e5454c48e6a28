"""Attention over DALL-E's stream: the formula here, its fused kernels beside it."""
