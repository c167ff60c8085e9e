"""Bundles: what a device gets of an export, packed, verified, unpacked."""
