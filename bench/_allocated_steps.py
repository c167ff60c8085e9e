"""Bytes that a decoder's steps allocate behind contexts of several lengths; prints JSON.

ONNX Runtime's arena is off, so that whatever a run needs is asked of malloc, which ``_allocated.c``
counts: it has to be loaded before the process (``LD_PRELOAD``). A step that copied its cache would
allocate that as well. `allocated` builds the library and runs this file.

Usage: _allocated_steps.py {genai,generate,open_export} FOLDER CONTEXT ...
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STEPS: Final = 8
ADAPTER: Final = "one"
_SOURCE: Final = Path(__file__).with_name("_allocated.c")


def allocated(
    python: str | Path, runtime: str, folder: Path, contexts: Sequence[int], work: Path
) -> dict[str, Any]:
    """Return the bytes of a step and of the cache behind each context, by a process of its own.

    Args:
        python: The interpreter that has the runtime.
        runtime: ``genai``, ``generate`` or ``open_export``.
        folder: A directory for genai, or an export with the adapter `ADAPTER`.
        contexts: Numbers of tokens.
        work: Where the library goes; gcc makes it.
    """
    library = work / "allocated.so"
    if not library.exists():
        words: list[str | Path] = ["cc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE]
        subprocess.run(words, check=True)
    command = [python, Path(__file__), runtime, folder, *map(str, contexts)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=os.environ | {"LD_PRELOAD": str(library)}
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    runtime, folder, *rest = sys.argv[1:]
    counter = ctypes.CDLL(None).allocated_bytes
    counter.restype = ctypes.c_uint64
    steps_of = {"genai": by_genai, "generate": by_generate, "open_export": by_session}[runtime]
    found = {}
    for context in map(int, rest):
        steps = steps_of(Path(folder), context)
        next(steps)  # the prompt
        sizes = []
        for _ in range(STEPS):
            before = counter()
            next(steps)
            sizes.append(counter() - before)
        found[str(context)] = int(statistics.median(sizes))
    print(json.dumps(found))


def by_genai(folder: Path, context: int) -> Iterator[None]:
    """Yield after the prompt and after each token of onnxruntime-genai."""
    import onnxruntime_genai as og

    settings = og.Config(str(folder))
    settings.overlay(
        json.dumps({"model": {"decoder": {"session_options": {"enable_cpu_mem_arena": False}}}})
    )
    model = og.Model(settings)
    params = og.GeneratorParams(model)
    length = context + STEPS + 2
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt_of(context))
    while True:
        generator.generate_next_token()
        yield


def by_generate(folder: Path, context: int) -> Iterator[None]:
    """Yield after each token that ``lora-export generate`` writes."""
    without_arena()
    from lora_export.core.manifest import read_manifest
    from lora_export.runtime.open_adapter_graph import open_runner
    from lora_export.runtime.ort_decoder import OrtDecoder
    from lora_export.runtime.text_generation import Sampling, generate

    runner = open_runner(folder, read_manifest(folder), ADAPTER)
    decoder = OrtDecoder(runner, length=context + STEPS + 2)
    for _ in generate(
        decoder, [prompt_of(context).tolist()], max_new_tokens=STEPS + 2, sampling=Sampling(),
        stop=(), padding=0,
    ):  # fmt: skip
        yield


def by_session(folder: Path, context: int) -> Iterator[None]:
    """Yield after each run of ``open_export`` with arrays that have room for all tokens."""
    without_arena()
    from lora_export.runtime import open_export

    room = context + STEPS + 2
    with open_export(folder) as session:
        run = in_own_arrays(session, room)
        run(prompt_of(context)[None].astype(np.int64), context)
        yield
        for step in range(STEPS + 1):
            run(np.full((1, 1), 5), context + step + 1)
            yield


def in_own_arrays(session: Any, room: int) -> Callable[[Any, int], None]:
    """Return a function that runs new tokens with one set of arrays as past and present."""
    cache = {
        each.name: np.zeros((1, each.axes[1], room, each.axes[3]), np.float32)
        for each in session.inputs
        if each.name.startswith("past_key_values")
    }

    def run(ids: Any, length: int) -> None:
        session.run(
            {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64), **cache},
            adapter=ADAPTER,
        )

    return run


def prompt_of(context: int) -> Any:
    return np.random.default_rng(0).integers(5, 200, context).astype(np.int32)


def without_arena() -> None:
    """Let every session of this process allocate by malloc."""
    import onnxruntime

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        """The options, without the arena."""

        def __init__(self) -> None:
            super().__init__()
            self.enable_cpu_mem_arena = False

    onnxruntime.SessionOptions = Options


if __name__ == "__main__":
    main()
