"""The compiled module; everything else about the package stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "lora_export.core._kernels",
            [
                f"lora_export/core/{name}.c"
                for name in (
                    "_kernels",
                    "_halves",
                    "_channels",
                    "_blocks",
                    "_blocks_8",
                    "_blocks_16",
                )
            ],
            depends=[
                f"lora_export/core/{name}.h"
                for name in ("_kernels", "_lanes", "_blocks", "_blocks_tile")
            ],
            # The same bits on every processor: products and sums are rounded one by one.
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,  # where it cannot be built, NumPy does the same at a third of the speed
        )
    ]
)
