"""Verification: parity with unmerged PEFT, accuracy on data sets, latency against the base."""
