"""Latency: graphs measured side by side, compared by paired ratios, and gated."""
