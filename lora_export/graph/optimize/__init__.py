"""Rewriting of a traced graph: folded, fused, repeated layers copied back in."""
