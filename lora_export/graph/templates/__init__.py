"""Templates that ship with the package: graphs of known architectures, without torch."""
