"""The commands, and the inputs that each reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COMMANDS", "Command", "Target", "targets"]

_BERT: Final = ("base", "base_sharded", "base_torch", "base_hub")
_ADAPTERS: Final = ("adapter", "adapter_torch")
_EXPORTS: Final = ("export_merged", "export_swappable", "export_batched", "export_decoder")
_STACKED: Final = ("export_merged", "export_swappable", "export_batched")
_REPOSITORIES: Final = ("triton_merged", "triton_swappable")
_PLACE: Final = ("place",)
_ONE: Final = "--adapter one={w}/adapter"
_TASK: Final = "--task text-classification"
_BENCH: Final = "--rounds 5 --length 4 --no-startup --report {o}/bench.json"


class Command(NamedTuple):
    """A command line and what it may do.

    Attributes:
        words: The command line: ``{x}`` is the spoiled input, ``{w}`` the folder of all inputs,
            ``{o}`` an empty folder for outputs. ``api:`` begins the name of a function in
            `tools.bad_file_matrix.calls`; ``run.py`` is the program of the bundle after it.
        inputs: The inputs that are spoiled, one at a time.
        hashes: Whether it compares every file of the input with a hash.
        double: Whether it runs with the double of TensorRT.
        torch: Whether it uses torch.
    """

    words: str
    inputs: tuple[str, ...]
    hashes: bool = False
    double: bool = False
    torch: bool = False


class Target(NamedTuple):
    """A command with one input that is to be spoiled."""

    command: str
    input: str


COMMANDS: Final[dict[str, Command]] = {
    "inspect": Command(
        "inspect {x}",
        (*_BERT, "base_sentence", "decoder", *_ADAPTERS, *_EXPORTS, "export_engines", "merged"),
    ),
    "inspect-hash": Command("inspect --hash {x}", _EXPORTS, hashes=True),
    "inspect-fingerprint": Command("inspect --hash {x}", ("base",)),
    "inspect-pair": Command("inspect {x} {w}/adapter", ("base", "merged", *_STACKED)),
    "inspect-fit": Command("inspect {w}/base {x}", _ADAPTERS),
    "merge-base": Command(f"merge --base {{x}} {_ONE} --out {{o}}/merged", _BERT),
    "merge": Command("merge --base {w}/base --adapter one={x} --out {o}/merged", _ADAPTERS),
    "merge-decoder": Command(
        "merge --base {w}/decoder --adapter one={x} --out {o}/merged", ("adapter_decoder",)
    ),
    "merge-decoder-base": Command(
        "merge --base {x} --adapter one={w}/adapter_decoder --out {o}/merged", ("decoder",)
    ),
    "merge-sentence": Command(
        f"merge --base {{x}} {_ONE} --drop classifier.* --out {{o}}/merged", ("base_sentence",)
    ),
    "merge-again": Command(
        "merge --base {x} --adapter two={w}/adapter_other --out {o}/merged", ("merged",)
    ),
    "merge-verify": Command(
        f"merge --base {{x}} {_ONE} --out {{o}}/merged --verify", ("base", "base_torch"), torch=True
    ),
    "merge-verify-adapter": Command(
        "merge --base {w}/base --adapter one={x} --out {o}/merged --verify", _ADAPTERS, torch=True
    ),
    "combine": Command(
        "merge --base {w}/base --adapter one={x} --adapter two={w}/adapter_other"
        " --combine svd --head-from one --out {o}/merged",
        _ADAPTERS,
    ),
    "unmerge": Command("merge --base {w}/base --unmerge {x} --out {o}/base", ("merged",)),
    "unmerge-base": Command("merge --base {x} --unmerge {w}/merged --out {o}/base", ("base",)),
    "convert-peft": Command("adapter convert {x} --to peft --out {o}/peft", _ADAPTERS),
    "convert-onnx": Command(
        "adapter convert {x} --to onnx_adapter --out {o}/pack.onnx_adapter", _ADAPTERS
    ),
    "convert-base": Command(
        "adapter convert {w}/adapter --to peft --base {x} --out {o}/peft", ("base",)
    ),
    "convert-export": Command(
        "adapter convert {w}/adapter --to onnx_adapter --export {x} --out {o}/pack.onnx_adapter",
        ("export_swappable",),
    ),
    "analyze": Command("analyze {x}", _ADAPTERS),
    "analyze-pair": Command("analyze {w}/adapter {x} --figure {o}/figure.svg", _ADAPTERS),
    "analyze-base": Command("analyze {w}/adapter --base {x}", ("base", "base_torch")),
    "analyze-compress": Command("analyze {x} --compress 2 --out {o}/small", _ADAPTERS),
    "analyze-plan": Command(
        "analyze --plan {x} --target query --rank 4", ("base", "base_hub"), torch=True
    ),
    "export-base": Command(
        f"export --base {{x}} {_ONE} {_TASK} --out {{o}}/export",
        ("base", "base_sharded", "base_torch"),
        torch=True,
    ),
    "export": Command(
        f"export --base {{w}}/base --adapter one={{x}} {_TASK} --out {{o}}/export",
        _ADAPTERS,
        torch=True,
    ),
    "export-decoder": Command(
        "export --base {w}/decoder --adapter one={x} --task text-generation --out {o}/export",
        ("adapter_decoder",),
        torch=True,
    ),
    "export-sentence": Command(
        "export --base {x} --adapter one={w}/adapter --drop classifier.*"
        " --task sentence-similarity --out {o}/export",
        ("base_sentence",),
        torch=True,
    ),
    "export-graph": Command(
        f"export --base {{w}}/base --graph {{x}}/model.onnx {_ONE} {_TASK} --out {{o}}/export",
        ("graph",),
        torch=True,
    ),
    "export-cache": Command(
        f"export --base {{w}}/base {_ONE} {_TASK} --out {{o}}/export", ("graph_cache",), torch=True
    ),
    "recipe": Command("merge-and-build {x}/recipe.yaml", ("recipe",), torch=True),
    "recipe-dataset": Command("merge-and-build {w}/recipe/recipe.yaml", ("dataset",), torch=True),
    "add": Command("add {x} --adapter new={w}/adapter_other", (*_STACKED, "export_engines")),
    "add-adapter": Command("add {w}/export_merged --adapter new={x}", _ADAPTERS),
    "add-replace": Command("add {x} --adapter one={w}/adapter_other --replace", ("export_merged",)),
    "quantize": Command("quantize {x} -o {o}/small", _EXPORTS, hashes=True),
    "remove": Command("remove {x} one", (*_EXPORTS, "export_engines")),
    "verify": Command("verify {x}", (*_EXPORTS, "export_engines"), hashes=True),
    "verify-base": Command(
        f"verify {{w}}/export_merged --base {{x}} {_ONE}", ("base",), torch=True
    ),
    "verify-adapter": Command(
        "verify {w}/export_merged --base {w}/base --adapter one={x}", ("adapter",), torch=True
    ),
    "verify-dataset": Command(
        f"verify {{w}}/export_merged --base {{w}}/base {_ONE} --dataset {{x}}/rows.jsonl",
        ("dataset",),
        torch=True,
    ),
    "report": Command("report {x}", _EXPORTS),
    "report-github": Command("report {x} --github", ("export_merged",)),
    "bench": Command(f"bench {{x}} {_BENCH}", ("export_merged", "export_decoder")),
    "bench-against": Command(
        f"bench {{w}}/export_merged --against {{x}} {_BENCH}", ("export_merged",)
    ),
    "bench-baseline": Command(
        f"bench {{w}}/export_merged --baseline {{x}}/bench.json --max-ratio 100 {_BENCH}",
        ("baseline",),
    ),
    "generate": Command(
        "generate {x} --prompt w5 --max-new-tokens 2 --adapter one", ("export_decoder",)
    ),
    "preflight": Command("preflight {x} --target jetson-orin", (*_STACKED, "export_engines")),
    "build-dry": Command("build {x} --target jetson-orin --dry-run", ("export_merged",)),
    "build-recipe": Command(
        "build {w}/export_merged --target jetson-orin --recipe {x}/recipe.yaml --dry-run",
        ("recipe",),
    ),
    "build": Command("build {x} --target auto", ("export_merged", "export_engines"), double=True),
    "refit": Command("refit {x} --target auto --adapter one", ("export_engines",), double=True),
    "bundle": Command(
        "bundle {x} --target jetson-orin -o {o}/bundle.tar", ("export_merged", "export_swappable")
    ),
    "bundle-recipe": Command(
        "bundle {w}/export_merged --target jetson-orin --recipe {x}/recipe.yaml -o {o}/bundle.tar",
        ("recipe",),
    ),
    "bundle-verify": Command("bundle verify {x}", ("bundle_folder",), hashes=True),
    "bundle-verify-file": Command("bundle verify {x}/bundle.tar", ("bundle",), hashes=True),
    "bundle-unpack": Command(
        "bundle unpack {x}/bundle.tar --out {o}/bundle", ("bundle",), hashes=True
    ),
    "device-files": Command("run.py {x} files", ("bundle_folder",), hashes=True),
    "device-verify": Command("run.py {x} verify", ("bundle_folder",), hashes=True),
    "layout": Command("layout {x} --for genai -o {o}/genai", ("export_decoder",)),
    "layout-optimum": Command("layout {x} --for optimum -o {o}/optimum", _STACKED[:2]),
    "triton": Command("triton {x} --repository {o}/repository --text", _STACKED),
    "triton-recipe": Command("triton {w}/export_merged --recipe {x}/recipe.yaml", ("recipe",)),
    "triton-into": Command(
        "triton {w}/export_batched --repository {x} --name other", _REPOSITORIES
    ),
    "triton-add": Command(
        "triton add {w}/export_swappable one --replace --repository {x}",
        ("triton_swappable",),
    ),
    "triton-remove": Command("triton remove one --repository {x}", ("triton_swappable",)),
    "triton-check": Command("triton check {x}", _REPOSITORIES),
    "fleet-plan": Command("fleet plan {x}/fleet.yaml --dry-run", ("fleet",)),
    "fleet-plan-adapter": Command("fleet plan {w}/fleet/fleet.yaml --dry-run", ("adapter",)),
    "fleet-status": Command("fleet status {x}", ("fleet",)),
    "to-fleet": Command("fleet plan {w}/fleet/fleet.yaml -o {x}/target.json", _PLACE),
    "to-merge": Command(f"merge --base {{w}}/base {_ONE} --out {{x}}/target", _PLACE),
    "to-convert": Command("adapter convert {w}/adapter --to peft --out {x}/target", _PLACE),
    "to-pack": Command(
        "adapter convert {w}/adapter --to onnx_adapter --out {x}/target.onnx_adapter", _PLACE
    ),
    "to-small": Command("analyze {w}/adapter --compress 2 --out {x}/target", _PLACE),
    "to-figure": Command("analyze {w}/adapter {w}/adapter_other --figure {x}/target.svg", _PLACE),
    "to-export": Command(
        f"export --base {{w}}/base {_ONE} {_TASK} --out {{x}}/target", _PLACE, torch=True
    ),
    "to-bundle": Command("bundle {w}/export_merged --target jetson-orin -o {x}/target.tar", _PLACE),
    "to-bundle-replace": Command(
        "bundle {w}/export_merged --target jetson-orin -o {x}/target.tar --replace", _PLACE
    ),
    "to-unpack": Command("bundle unpack {w}/bundle/bundle.tar --out {x}/target", _PLACE),
    "to-layout": Command("layout {w}/export_decoder --for genai -o {x}/target", _PLACE),
    "to-layout-replace": Command(
        "layout {w}/export_decoder --for genai -o {x}/target --replace", _PLACE
    ),
    "to-triton": Command("triton {w}/export_merged --repository {x}/target --text", _PLACE),
    "to-report": Command(
        "bench {w}/export_merged --rounds 5 --length 4 --no-startup --report {x}/target.json",
        _PLACE,
    ),
    "open_export": Command("api:open_export {x}", _EXPORTS),
    "api-verify": Command("api:verify {x}", ("export_merged",), hashes=True),
    "api-inspect": Command("api:inspect {x}", ("base", "adapter", "export_merged")),
}
"""Every command by its name in this table."""


def targets() -> Iterator[Target]:
    """Yield every command with each of its inputs."""
    for name, command in COMMANDS.items():
        for each in command.inputs:
            yield Target(name, each)
