"""Judgement with NumPy alone: metrics, tolerances, golden outputs, timing."""
