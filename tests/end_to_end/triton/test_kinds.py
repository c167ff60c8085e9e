"""Models of other kinds in the real server: decoders step by step, images, embeddings, heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.ondevice.judge.decoding import PAST, PRESENT, on_static_cache
from lora_export.runtime import open_export
from lora_export.triton.check_repository import check_repository
from lora_export.triton.repository import write_repository
from tests.end_to_end.triton.clients import Client, protocols
from tests.end_to_end.triton.server import serving
from tests.helpers.builds import build
from tests.helpers.sentences import save_sentences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lora_export.runtime import Session
    from tests.end_to_end.triton.server import Server

ROOM = 24
GENERATION, CLASSIFICATION = "text-generation", "text-classification"
KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "decoder": ("gpt2", GENERATION, "swappable", {}),
    "decoder-batched": ("llama", GENERATION, "batched", {}),
    "decoder-static": ("llama", GENERATION, "merged", {"opset": 24, "cache_length": ROOM}),
    "decoder-last": ("llama", GENERATION, "swappable", {"logits": "last"}),
    "scorer": ("gpt2", GENERATION, "merged", {"cache": False}),
    "half": ("bert", CLASSIFICATION, "swappable", {"dtype": "float16"}),
    "half-batched": ("bert", CLASSIFICATION, "batched", {"dtype": "float16"}),
    "images": ("vit", "image-classification", "swappable", {}),
    "sentences": ("bert", "feature-extraction", "swappable", {}),
}  # fmt: skip
WAYS = {"images": "merge_at_load"}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
HALF = {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(scope="module")
def exports(tiny, tmp_path_factory) -> dict[str, Path]:
    made = {}
    for kind, (model, task, mode, settings) in KINDS.items():
        root = tmp_path_factory.mktemp(kind)
        base = plain = tiny.base(model, task)
        if kind == "sentences":
            base = save_sentences(plain, root / "base", "mean_tokens")
        labels = None if task in {GENERATION, "feature-extraction"} else 3
        adapters = {
            name: tiny.adapter(plain, task=task, seed=seed, labels_count=labels, strength=0.3)
            for name, seed in (("one", 1), ("two", 2))
        }
        made[kind] = build(
            base, adapters, root / "out", mode=mode, verify={"enabled": True}, **settings
        ).output
    return made


@pytest.fixture(scope="module")
def server(home, exports, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kinds")
    for kind, export in exports.items():
        write_repository(export, folder / "models", name=kind, backend="python", way=WAYS.get(kind))
    assert not any(check_repository(folder / "models").values())
    with serving(home, folder / "models", folder / "log") as running:
        yield running


def made_up(session: Session, rows: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """Return inputs of a graph; of one with a cache, the first step on an empty past."""
    random = np.random.default_rng(seed)
    feeds = {}
    for each in session.inputs:
        if each.name.startswith(PAST):
            shape = [rows, each.axes[1], each.axes[2] if isinstance(each.axes[2], int) else 0,
                     each.axes[3]]  # fmt: skip
            feeds[each.name] = np.zeros(shape, each.dtype)
        elif each.name == "input_ids":
            feeds[each.name] = random.integers(3, 200, (rows, length))
        elif each.name == "position_ids":
            feeds[each.name] = np.tile(np.arange(length), (rows, 1))
        elif each.name == "attention_mask":
            feeds[each.name] = np.ones((rows, length), np.int64)
        elif each.name == "token_type_ids":
            feeds[each.name] = np.zeros((rows, length), np.int64)
        elif each.name != "write_indices":
            feeds[each.name] = random.standard_normal((rows, *each.axes[1:])).astype(each.dtype)
    return feeds


def asked(
    client: Client, model: str, feeds: Mapping[str, np.ndarray], names: list[str]
) -> dict[str, np.ndarray]:
    """Return all outputs of one request."""
    inputs = []
    for name, values in feeds.items():
        column = values[:, None] if values.ndim == 1 else values
        inputs.append(client.tensor(name, column))
    inputs.append(client.tensor("adapter", np.array([[each] for each in names], object)))
    result = client.client.infer(model, inputs)
    described = result.get_response(as_json=True) if client.protocol == "grpc" else (
        result.get_response()
    )  # fmt: skip
    return {each["name"]: result.as_numpy(each["name"]) for each in described["outputs"]}


@pytest.mark.parametrize("protocol", protocols())
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_as_the_export_does(server, exports, kind, protocol):
    client = Client(server, protocol)
    close = HALF if kind.startswith("half") else CLOSE
    seen = []
    with open_export(exports[kind]) as session:
        for adapter in (None, "one", "two"):
            feeds = made_up(session, 2, 5, seed=7)
            for at in range(3):
                if kind == "decoder-static":
                    feeds = on_static_cache(feeds, written=4 + at if at else 0, length=ROOM)
                wanted = session.run(feeds, adapter=adapter)
                found = asked(client, kind, feeds, [adapter or ""] * 2)
                assert found.keys() == wanted.keys()
                for name, values in wanted.items():
                    assert found[name].dtype == values.dtype
                    np.testing.assert_allclose(found[name], values, **close, err_msg=name)
                seen.append(found[session.outputs[0].name])
                feeds = following(feeds, found, at)
                if feeds is None:
                    break
    assert not np.allclose(seen[0], seen[-1], **close)


def following(
    feeds: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], at: int
) -> dict[str, np.ndarray] | None:
    """Return the next step of a decoder; None where there is none."""
    past = {n: found[PRESENT + n.removeprefix(PAST)] for n in feeds if n.startswith(PAST)}
    if not past:
        return None
    written = 5 + at
    rows = len(feeds["input_ids"])
    ids = found["logits"][:, -1].argmax(-1)[:, None]
    given = {"input_ids": ids, "attention_mask": np.ones((rows, written + 1), np.int64)}
    if "position_ids" in feeds:
        given["position_ids"] = np.full((rows, 1), written)
    return {**given, **past}
