"""The picture of a report in the README: what ``make demo`` wrote, as a browser shows it.

    python -m tools.report_picture [build/minilm-intents/reports/report.html]

Needs Chromium. The picture has the summary, parity, accuracy and latency; the sections on what was
merged, sizes and the environment are left out, to keep it low.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Final

from tests.helpers.browser import browser

__all__ = ["main"]

_ROOT: Final = Path(__file__).parents[1]
_PICTURE: Final = _ROOT / "docs/assets/report.png"
_REPORT: Final = _ROOT / "build/minilm-intents/reports/report.html"
_WIDTH: Final = 1160
_SHORTEN: Final = """
for (const section of document.querySelectorAll("section")) {
  if (!/^(Parity|Latency)/.test(section.querySelector("h2").textContent)) section.remove();
}
document.querySelectorAll("nav, footer").forEach(each => each.remove());
document.documentElement.scrollHeight
"""


def main() -> None:
    """Write the picture."""
    report = Path(sys.argv[1]) if len(sys.argv) > 1 else _REPORT
    with browser() as page:
        page.open(report, width=_WIDTH, height=600, dark=False)
        page.evaluate(_SHORTEN)
        height = page.evaluate("Math.ceil(document.body.getBoundingClientRect().bottom)")
        clip = {"x": 0, "y": 0, "width": _WIDTH, "height": height, "scale": 1}
        found = page.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    _PICTURE.write_bytes(base64.b64decode(found["data"]))
    print(f"{_PICTURE.relative_to(_ROOT)}: {_PICTURE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
