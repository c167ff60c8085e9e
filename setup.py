"""The compiled module; everything else about the package stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "lora_export.core._halves",
            ["lora_export/core/_halves.c"],
            extra_compile_args=["-O3"],
            optional=True,  # where it cannot be built, NumPy does the same at a third of the speed
        )
    ]
)
