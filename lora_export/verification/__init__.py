"""Verification: parity with the unmerged adapter, and latency against the base."""
