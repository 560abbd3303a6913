"""Search: two arms, fused."""
