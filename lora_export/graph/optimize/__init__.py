"""Rewriting a traced graph: folded, fused, its repeated layers put back."""
