"""The page of a fleet as a browser shows it, and what it says; hostile names are text."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.fleet.fleet_matrix import adapter_table
from lora_export.fleet.fleet_report import worst_first
from lora_export.report.fleet_page import fleet_page
from tests.helpers.browser import CHROMIUM, browser
from tests.helpers.showcase import HOSTILE
from tests.report.test_page import CONTRAST, REASONS, STRUCTURE, parsed

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = ["onnxruntime-cpu", "rtx", "jetson-orin"]
FIGURES = {"relative_l2": 3.4e-7, "gain": 0.98, "loss": 0.0312, "latency_ratio": 1.0042}


def row(kind: str, adapter: str | None = None, target: str | None = None, status: str = "done",
        **more: Any) -> dict[str, Any]:  # fmt: skip
    """Return a row of a report."""
    after = (f"/{adapter}" if adapter else "") + (f"@{target}" if target else "")
    name = f"{kind}:minilm/merged-int8{after}"
    return {
        "id": name, "kind": kind, "base": "minilm", "variant": "merged-int8", "adapter": adapter,
        "target": target, "status": status, "exit_code": 0, "message": "", "key": name,
        "artifact": "exports/minilm/merged-int8", "seconds": 2.5, "log": ".fleet/logs/a.log",
        "measures": {"bytes": 1.5e6}, **more,
    }  # fmt: skip


def report(**changes: Any) -> dict[str, Any]:
    """Return a report with every state, and with names that a stranger chose."""
    good = {"verdict": "pass", "measures": {**FIGURES, "bytes": 1.5e6}}
    rows = [row("export", status="skipped")]
    for at in range(6):
        rows.append(row("adapter", f"intents-{at}", **good))
        rows.append(row("engine", f"intents-{at}", "rtx", "failed" if at == 2 else "done",
                        exit_code=7, next="lora-export fleet run f.yaml",
                        message="TensorRT for RTX is not installed\npip install it"))  # fmt: skip
    lost = f"parity of odd: fail: {HOSTILE}\nIt is not in the export."
    rows.append(row("adapter", "odd", status="failed", exit_code=5, message=lost,
                    next=f"lora-export {HOSTILE}"))  # fmt: skip
    rows.append(row("engine", "odd", "rtx", "blocked"))
    rows.append(row("adapter", "a-very-long-adapter-name-of-sixty-four-characters-as-allowed-her",
                    verdict="ambiguous", measures=FIGURES))  # fmt: skip
    rows.append(row("bundle", None, "jetson-orin", artifact="bundles/minilm.tar"))
    counts = {"blocked": 1, "done": len(rows) - 4, "failed": 2, "skipped": 1}
    table = {
        "tool": "0.2", "versions": {"onnx": "1.22", "torch": HOSTILE}, "store": f"/data/{HOSTILE}",
        "source": "fleet.yaml", "date": "2026-11-30T22:00:00Z", "running": False, "seconds": 75.5,
        "counts": counts, "exit_code": 5, "rows": rows, "targets": TARGETS,
        "failures": [each["id"] for each in worst_first(rows)],
        "adapters": adapter_table(rows, TARGETS),
        "changes": {"since": "2026-11-29T22:00:00Z", "new": [f"adapter:{HOSTILE}"],
                    "failing": ["adapter:minilm/merged-int8/odd"]},
    }  # fmt: skip
    return {**table, **changes}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_it_is_readable_on_a_desk_and_a_phone_by_day_and_by_night(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(fleet_page(report()))
    with browser() as tab:
        for width in (1440, 390):
            for dark in (False, True):
                tab.open(page, width=width, height=900, dark=dark)
                assert tab.messages == []
                assert tab.requests == [page.as_uri()]
                assert tab.evaluate("document.documentElement.scrollWidth") == width
                least, text, count = tab.evaluate(CONTRAST)
                assert least >= 4.5, (least, text, width, dark)
                assert count > 100
                assert tab.evaluate(REASONS)["cut"] == 0
        found = tab.evaluate(STRUCTURE)
    levels = found.pop("headings")
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(b <= a + 1 for a, b in pairwise(levels))
    found.pop("smallest")  # there are no figures
    assert set(found.values()) == {0}, found


def test_strangers_names_are_text() -> None:
    parser, text = parsed(fleet_page(report()))
    assert text.count(HOSTILE) >= 4
    assert not {"script", "img", "iframe", "object", "link"} & parser.tags
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    assert not [v for k, v in parser.attributes if k in {"src", "href"} and not v.startswith("#")]


def test_it_says_what_failed_what_changed_and_what_to_do() -> None:
    _, text = parsed(fleet_page(report()))
    for fact in (
        "8 adapters on 1 base", "✗ fail", "2 rows failed, and 1 row that need them",
        "1 min 15 s", "3.40e-07", "1.004", "0.980", "TensorRT for RTX is not installed",
        "lora-export fleet run f.yaml", "Failed, and did not before (1)", "New (1)",
    ):  # fmt: skip
        assert fact in text, fact
    assert text.index("parity of odd") < text.index("TensorRT for RTX is not installed")


def test_a_run_without_failures_says_so() -> None:
    rows = [row("export"), row("adapter", "one", verdict="pass")]
    good = report(rows=rows, failures=[], changes=None, counts={"done": 2},
                  adapters=adapter_table(rows, ["onnxruntime-cpu"]))  # fmt: skip
    _, text = parsed(fleet_page(good))
    assert "Everything is made, and every adapter is verified." in text
    assert "Failures" not in text
    assert "Since the last run" not in text


def test_a_target_is_what_its_own_row_says() -> None:
    lines = {each["adapter"]: each["targets"] for each in report()["adapters"]}
    states = {name: {key: cell["status"] for key, cell in each.items()}
              for name, each in lines.items()}  # fmt: skip
    assert states["intents-1"] == dict.fromkeys(TARGETS, "done")
    assert states["intents-2"] == {
        "onnxruntime-cpu": "done", "rtx": "failed", "jetson-orin": "done"}  # fmt: skip
    assert states["odd"] == dict.fromkeys(TARGETS, "failed")  # though the bundle is made
