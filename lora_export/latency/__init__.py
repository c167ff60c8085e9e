"""Latency of graphs and runners: measured side by side, compared as paired ratios, gated."""
