"""What carries an export to where it runs: bundles for devices, repositories for Triton."""
