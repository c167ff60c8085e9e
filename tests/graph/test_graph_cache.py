"""The graph cache: what its key covers, that a hit needs no torch, that damage is not trusted."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lora_export.graph.graph_export as export_module
from lora_export.core.errors import MissingRuntimeError
from lora_export.graph import graph_cache as cache
from lora_export.graph.spec import tasks
from lora_export.graph.spec.template import GraphTemplate
from lora_export.graph.templates.matching import NoTemplateError
from tests.cli.running import HEAVY, python
from tests.graph.families import load_config, template_of

if TYPE_CHECKING:
    from tests.helpers.models import TinyModels

CLASSIFY = "text-classification"
NO_TEMPLATE = "  graph templates: none that ships with lora-export is for this test"

EXPORT = """
import hashlib, json, sys
for name in json.loads(sys.argv[3]):
    sys.modules[name] = None
from lora_export.graph.spec import tasks
from lora_export.graph.graph_export import export_graph
for path in json.loads(sys.argv[1]):
    config = json.loads(open(path).read())
    task = tasks.detect(config)
    labels = 3 if task.label_parameters else None
    template = export_graph(
        config,
        task,
        dtype="float32",
        opset=20,
        labels_count=labels,
        use_cache=sys.argv[2] == "cache",
    )
    print(hashlib.sha256(template.onnx_bytes).hexdigest(), len(template.parameters))
print(sorted(set(sys.modules) & {"torch", "transformers"} - set(json.loads(sys.argv[3]))))
"""


def sha256(template: GraphTemplate) -> str:
    return hashlib.sha256(template.onnx_bytes).hexdigest()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Count what would be traced, and trace none of it."""
    calls: list[dict[str, Any]] = []

    def fake(settings, task, dtype, opset, choices, *, sentence, untied, tell, require):
        assert (sentence, untied, require) == (None, False, None)
        tell.start("tracing")
        calls.append(
            {"settings": dict(settings), "task": task.name, "dtype": dtype, "opset": opset}
            | asdict(choices)
        )
        return GraphTemplate(f"graph {len(calls)}".encode(), (), "bert.", "Fake", opset)

    def none(*_args: object, **_given: object) -> None:
        msg = "this test"
        raise NoTemplateError(msg)

    monkeypatch.setattr(export_module, "from_template", none)
    monkeypatch.setattr(export_module, "_trace_and_fold", fake)
    return calls


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


CONFIG = {"model_type": "bert", "hidden_size": 32, "vocab_size": 99, "architectures": ["BertModel"]}


def test_second_export_is_not_traced(traced, own_cache: Path) -> None:
    first = template_of(CONFIG, CLASSIFY)
    second = template_of(CONFIG, CLASSIFY)
    assert len(traced) == 1
    assert second == first


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 64},
        {"vocab_size": 100},
        {"num_attention_heads": 2},
        {"hidden_act": "relu"},
        {"a_setting_of_tomorrow": 1},
    ],
    ids=str,
)
def test_another_config_is_another_graph(traced, own_cache: Path, change) -> None:
    template_of(CONFIG, CLASSIFY)
    template_of({**CONFIG, **change}, CLASSIFY)
    assert len(traced) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"id2label": {"0": "no", "1": "yes", "2": "perhaps"}},
        {"label2id": {"no": 0, "yes": 1, "perhaps": 2}},
        {"_name_or_path": "/somewhere/else"},
        {"transformers_version": "4.0.0"},
        {"dtype": "bfloat16"},
        {"torch_dtype": "bfloat16"},
        {"architectures": ["BertForMaskedLM"]},
    ],
    ids=str,
)
def test_names_do_not_make_another_graph(traced, own_cache: Path, change) -> None:
    template_of(CONFIG, CLASSIFY)
    template_of({**CONFIG, **change}, CLASSIFY)
    assert len(traced) == 1


def test_task_dtype_opset_and_width_of_the_head_make_another_graph(traced, own_cache) -> None:
    rows = [
        ("text-classification", "float32", 18, 3),
        ("token-classification", "float32", 18, 3),
        ("text-classification", "float16", 18, 3),
        ("text-classification", "float32", 20, 3),
        ("text-classification", "float32", 18, 4),
    ]
    for name, dtype, opset, labels in rows * 2:
        export_module.export_graph(
            CONFIG, tasks.by_name(name), dtype=dtype, opset=opset, labels_count=labels
        )
    assert len(traced) == len(rows)


def test_versions_of_the_libraries_make_another_graph(traced, own_cache, monkeypatch) -> None:
    template_of(CONFIG, CLASSIFY)
    for library in ("torch", "transformers", "onnxscript"):
        real = cache._version
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_version", lambda n, x=library, r=real: "9.9" if n == x else r(n))
            template_of(CONFIG, CLASSIFY)
    assert len(traced) == 4


def test_graph_of_each_version_is_kept_beside_the_others(traced, own_cache, monkeypatch) -> None:
    first = template_of(CONFIG, CLASSIFY)
    with monkeypatch.context() as patch:
        versions_are(patch, {"transformers": "9.9"})
        second = template_of(CONFIG, CLASSIFY)
        assert template_of(CONFIG, CLASSIFY) == second != first
    assert template_of(CONFIG, CLASSIFY) == first
    assert len(traced) == 2


def versions_are(patch: pytest.MonkeyPatch, table: dict[str, str | None]) -> None:
    real = cache._version
    patch.setattr(cache, "_version", lambda name: table[name] if name in table else real(name))


def without_template(tiny: TinyModels, folder: Path) -> Path:
    """Return the path of a config that no shipped template is for."""
    folder.mkdir(exist_ok=True)
    config = load_config(tiny.base("bert", CLASSIFY)) | {"hidden_act": "relu"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def uninstall(patch: pytest.MonkeyPatch) -> None:
    """Hide what traces from the search for it, and its versions."""
    real = importlib.util.find_spec
    patch.setattr(importlib.util, "find_spec", lambda n: None if n in HEAVY else real(n))
    versions_are(patch, dict.fromkeys(("torch", "transformers", "accelerate", "onnxscript")))


@pytest.mark.parametrize(
    ("versions", "best"),
    [
        ([{"transformers": "5.9"}, {"transformers": "5.12"}], 1),
        ([{"transformers": "5.12"}, {"transformers": "5.9"}], 0),
        ([{"torch": "2.13.0+cpu"}, {"torch": "2.9.1"}], 0),
        ([{"transformers": "5.9", "torch": "2.13"}, {"transformers": "5.12", "torch": "2.9"}], 1),
    ],
    ids=str,
)
def test_without_torch_the_newest_graph_is_taken(traced, own_cache, monkeypatch, versions, best):
    made = []
    for table in versions:
        with monkeypatch.context() as patch:
            versions_are(patch, table)
            made.append(template_of(CONFIG, CLASSIFY))
    uninstall(monkeypatch)
    assert template_of(CONFIG, CLASSIFY) == made[best]
    damage_graph(newest := entry_of(own_cache, made[best]))
    assert template_of(CONFIG, CLASSIFY) == made[1 - best]
    shutil.rmtree(newest)
    damage_graph(entry_of(own_cache, made[1 - best]))
    with pytest.raises(MissingRuntimeError):
        template_of(CONFIG, CLASSIFY)
    assert len(traced) == 2


def test_with_torch_a_graph_of_other_versions_is_not_taken(traced, own_cache, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        versions_are(patch, {"transformers": "9.9"})
        template_of(CONFIG, CLASSIFY)
    template_of(CONFIG, CLASSIFY)
    assert len(traced) == 2


def test_entry_under_a_foreign_name_is_none(traced, own_cache, monkeypatch) -> None:
    template_of(CONFIG, CLASSIFY)
    template_of({**CONFIG, "hidden_size": 64}, CLASSIFY)
    (first,), (second,) = (list(each.iterdir()) for each in (own_cache / "graphs").iterdir())
    shutil.rmtree(first)
    shutil.copytree(second, first)
    template_of(CONFIG, CLASSIFY)
    template_of({**CONFIG, "hidden_size": 64}, CLASSIFY)
    assert len(traced) == 3


def test_entry_of_the_former_layout_is_none(traced, own_cache, monkeypatch) -> None:
    """``graphs/<key>/graph.json``: neither read nor in the way."""
    template_of(CONFIG, CLASSIFY)
    (key,) = (own_cache / "graphs").iterdir()
    (entry,) = key.iterdir()
    for path in entry.iterdir():
        path.rename(key / path.name)
    entry.rmdir()
    template_of(CONFIG, CLASSIFY)
    template_of(CONFIG, CLASSIFY)
    assert len(traced) == 2
    uninstall(monkeypatch)
    template_of(CONFIG, CLASSIFY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64}, "the nearest graph of 'bert' has hidden_size 32, not 64"),
        ({"a_setting": 1}, "the nearest graph of 'bert' has a_setting absent, not 1"),
        ({"model_type": "gpt2"}, "no graph of 'gpt2'"),
    ],
    ids=str,
)
def test_without_torch_the_difference_is_named(traced, own_cache, monkeypatch, change, said):
    template_of(CONFIG, CLASSIFY)
    uninstall(monkeypatch)
    with pytest.raises(MissingRuntimeError) as caught:
        template_of({**CONFIG, **change}, CLASSIFY)
    assert caught.value.message.splitlines()[1:] == [f"  graph cache: {said}", NO_TEMPLATE]


def test_graph_of_another_version_of_this_package_is_named(traced, own_cache, monkeypatch) -> None:
    template_of(CONFIG, CLASSIFY)
    uninstall(monkeypatch)
    monkeypatch.setattr(cache, "_own_source_sha256", lambda: "0" * 64)
    with pytest.raises(MissingRuntimeError) as caught:
        template_of(CONFIG, CLASSIFY)
    assert caught.value.message.splitlines()[1:] == [
        "  graph cache: the graph was made by another version of lora-export",
        NO_TEMPLATE,
    ]


def entry_of(folder: Path, template: GraphTemplate) -> Path:
    graphs = folder.glob("graphs/*/*/graph.onnx")
    return next(path.parent for path in graphs if path.read_bytes() == template.onnx_bytes)


def test_use_cache_false_neither_reads_nor_writes(traced, own_cache: Path) -> None:
    template_of(CONFIG, CLASSIFY, use_cache=False)
    assert not own_cache.exists()
    template_of(CONFIG, CLASSIFY)
    template_of(CONFIG, CLASSIFY, use_cache=False)
    assert len(traced) == 3


def damage_graph(folder: Path) -> None:
    data = bytearray((folder / "graph.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "graph.onnx").write_bytes(data)


def truncate_graph(folder: Path) -> None:
    (folder / "graph.onnx").write_bytes((folder / "graph.onnx").read_bytes()[:-1])


def remove_graph(folder: Path) -> None:
    (folder / "graph.onnx").unlink()


def empty_table(folder: Path) -> None:
    (folder / "graph.json").write_text("")


def foreign_table(folder: Path) -> None:
    (folder / "graph.json").write_text("[]")


def damage_parameters(folder: Path) -> None:
    table = json.loads((folder / "graph.json").read_text())
    table["parameters"] = [{"name": "x"}]
    (folder / "graph.json").write_text(json.dumps(table))


@pytest.mark.parametrize(
    "damage",
    [
        damage_graph,
        truncate_graph,
        remove_graph,
        empty_table,
        foreign_table,
        damage_parameters,
        shutil.rmtree,
    ],
    ids=lambda f: f.__name__,
)
def test_damaged_entry_is_traced_again_and_replaced(traced, own_cache: Path, damage) -> None:
    template_of(CONFIG, CLASSIFY)
    (entry,) = (own_cache / "graphs").glob("*/*")
    damage(entry)
    again = template_of(CONFIG, CLASSIFY)
    assert len(traced) == 2
    assert again.onnx_bytes == b"graph 2"
    assert template_of(CONFIG, CLASSIFY) == again
    assert len(traced) == 2
    assert list((own_cache / "graphs").glob("*/*")) == [entry]
    assert list((own_cache / "graphs").iterdir()) == [entry.parent]


def test_cache_that_cannot_be_written_is_no_error(traced, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "file"))
    template_of(CONFIG, CLASSIFY)
    template_of(CONFIG, CLASSIFY)
    assert len(traced) == 2


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LORA_EXPORT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_root() == tmp_path / "home" / ".cache" / "lora-export"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "lora-export"
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "own"))
    assert cache.cache_root() == tmp_path / "own"


def test_second_export_in_another_process_imports_no_torch(tiny, tmp_path: Path) -> None:
    path = without_template(tiny, tmp_path)
    here = template_of(json.loads(path.read_text()), CLASSIFY)
    there = python("-c", EXPORT, json.dumps([str(path)]), "cache", json.dumps(HEAVY))
    assert there.code == 0, there.err
    assert there.out.split("\n")[:2] == [f"{sha256(here)} {len(here.parameters)}", "[]"]


def test_without_torch_an_uncached_graph_is_a_missing_runtime(tiny, own_cache: Path) -> None:
    paths = json.dumps([str(without_template(tiny, own_cache))])
    there = python("-c", EXPORT, paths, "cache", json.dumps(HEAVY))
    assert there.code == 1
    assert "MissingRuntimeError" in there.err
    assert "not installed: torch" in there.err
    assert "graph templates: none that ships with lora-export is for hidden_act 'relu'" in there.err


@pytest.mark.slow
def test_tracing_in_two_processes_gives_identical_bytes(tiny: TinyModels) -> None:
    """Another process, another hash seed, no cache: the same bytes, tied head included."""
    base = tiny.base("gpt2", "text-generation")
    here = template_of(load_config(base), "text-generation")
    paths = json.dumps([str(base / "config.json")])
    there = python("-c", EXPORT, paths, "fresh", "[]", environment={"PYTHONHASHSEED": "4711"})
    assert there.code == 0, there.err
    assert there.out.split()[0] == sha256(here)


def test_the_key_follows_every_module_that_shapes_a_graph() -> None:
    import lora_export

    package = Path(lora_export.__file__).parent
    names = {path.relative_to(package).as_posix() for path in cache.own_sources()}
    wanted = ("graph/spec/signature.py", "graph/trace/trace.py", "graph/optimize/fold.py",
              "core/dtypes.py", "graph/graph_export.py")  # fmt: skip
    assert names.issuperset(wanted)
