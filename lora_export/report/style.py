"""The style sheet of the page: light and dark by the reader's setting, phone first."""

from __future__ import annotations

from typing import Final

from lora_export.report.colours import STOPS

__all__ = ["POLICY", "STYLE"]

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a page may load: nothing."""

_LIGHT: Final = (
    "--page:#fff;--card:#f6f8fa;--ink:#1b1f24;--soft:#525a63;--line:#d0d7de;--link:#0550ae;"
    "--one:#8c959f;--mark:#0550ae;--limit:#a40e26;--pass:#0b5a21;--pass-on:#dafbe1;"
    "--fail:#a40e26;--fail-on:#ffebe9;--ambiguous:#6b4300;--ambiguous-on:#fff4c2;"
    "--unverified:#424a53;--unverified-on:#eaeef2"
)
_DARK: Final = (
    "--page:#0d1117;--card:#161b22;--ink:#e6edf3;--soft:#a3adb8;--line:#30363d;--link:#79c0ff;"
    "--one:#6e7681;--mark:#79c0ff;--limit:#ffa198;--pass:#7ee787;--pass-on:#10281b;"
    "--fail:#ffa198;--fail-on:#341417;--ambiguous:#f0c674;--ambiguous-on:#2b2310;"
    "--unverified:#c9d1d9;--unverified-on:#21262d"
)
_SCALE: Final = ",".join(f"rgb{stop}".replace(" ", "") for stop in STOPS)

STYLE: Final = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Liberation Sans",sans-serif;overflow-wrap:anywhere}}
header,main,footer{{max-width:84rem;margin:0 auto;padding:0 1rem}}
header{{padding-top:2rem}}
h1{{font-size:clamp(1.2rem,5.4vw,1.75rem);line-height:1.2;margin:.25rem 0}}
h2{{font-size:1.25rem;margin:2.75rem 0 .5rem;padding-top:.75rem;border-top:1px solid var(--line)}}
h3{{font-size:1rem;margin:1.75rem 0 .5rem}}
p{{margin:.5rem 0;max-width:44rem}}
a{{color:var(--link)}}
.soft,caption,dt,footer,.tick,th small{{color:var(--soft)}}
.kicker{{color:var(--soft);margin:0;font-size:.875rem}}
.skip{{position:absolute;left:-99rem}}
.skip:focus{{left:1rem;top:.5rem;background:var(--page);padding:.5rem}}
nav ul{{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1rem;padding:0;margin:1rem 0 0}}
nav a{{display:inline-block;padding:.25rem 0}}
.badge{{display:inline-block;border-radius:1rem;padding:.05rem .6rem;font-size:.875rem;
font-weight:600;white-space:nowrap}}
.pass{{color:var(--pass);background:var(--pass-on)}}
.fail{{color:var(--fail);background:var(--fail-on)}}
.ambiguous{{color:var(--ambiguous);background:var(--ambiguous-on)}}
.unverified,.ungated{{color:var(--unverified);background:var(--unverified-on)}}
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;
margin:1.25rem 0;padding:0}}
.cards div{{background:var(--card);border:1px solid var(--line);border-radius:.5rem;
padding:.6rem .8rem}}
.cards dt{{font-size:.8125rem}}
.cards dd{{margin:0;font-size:1.125rem;font-weight:600;font-variant-numeric:tabular-nums}}
dl.facts{{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.25rem 1rem;margin:0}}
dl.facts dd{{margin:0}}
.scroll{{overflow-x:auto;margin:.5rem 0;max-width:100%}}
.scroll:focus-visible,summary:focus-visible,a:focus-visible{{outline:2px solid var(--link);
outline-offset:2px}}
table{{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}}
caption{{text-align:left;padding:.25rem 0;font-size:.875rem}}
th,td{{text-align:left;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line);
vertical-align:top;overflow-wrap:normal}}
thead th{{font-weight:600;white-space:nowrap}}
tbody th{{font-weight:600;min-width:9.5rem}}
td.n,th.n{{text-align:right}}
td.n{{white-space:nowrap}}
td.long{{min-width:14rem;overflow-wrap:anywhere}}
td.name{{white-space:nowrap}}
.heat td,.heat thead th{{padding:.2rem .4rem;text-align:center;white-space:nowrap}}
.heat td{{border:1px solid var(--page);font-size:.8125rem}}
.heat tbody th{{min-width:0;padding-right:.75rem;white-space:nowrap}}
.scale{{height:.75rem;border-radius:.25rem;background:linear-gradient(90deg,{_SCALE})}}
.scale-ends{{display:flex;justify-content:space-between;font-size:.8125rem;max-width:24rem}}
.scale{{max-width:24rem}}
figure{{margin:.75rem 0 1.5rem}}
figcaption{{color:var(--soft);font-size:.875rem;max-width:44rem}}
.charts{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));
gap:0 1.5rem}}
.charts figure{{margin:.5rem 0}}
.chart{{display:block;width:100%;max-width:40rem;height:auto}}
.chart text{{font:11px system-ui,"Liberation Sans",sans-serif;fill:var(--ink)}}
.chart .tick{{fill:var(--soft)}}
.chart .value{{font-variant-numeric:tabular-nums}}
.chart path{{fill:none;stroke:var(--line);stroke-width:1}}
.chart .one{{stroke:var(--one);stroke-dasharray:3 3}}
.chart .interval{{stroke:var(--mark);stroke-width:3}}
.chart .half{{stroke:var(--line);stroke-width:14}}
.chart .median{{stroke:var(--ink);stroke-width:2}}
.chart .limit{{stroke:var(--limit);stroke-width:2}}
.chart .point,.chart .dot{{fill:var(--mark)}}
.chart .dot{{fill-opacity:.45}}
.chart .bar{{fill:var(--mark)}}
.chart .weak{{fill:var(--limit)}}
progress{{accent-color:var(--mark);width:6rem;vertical-align:middle}}
details{{margin:.5rem 0}}
summary{{cursor:pointer;padding:.25rem 0}}
code{{font:.875em ui-monospace,"SFMono-Regular","Liberation Mono",monospace}}
footer{{padding-top:2rem;padding-bottom:3rem;font-size:.875rem}}
@media(max-width:44rem){{
.stack,.stack tbody,.stack tr,.stack tbody th{{display:block}}
.stack caption{{display:block}}
.stack thead{{position:absolute;left:-99rem}}
.stack tr{{border-bottom:1px solid var(--line);padding:.5rem 0}}
.stack tbody th{{border:0;padding:0 0 .25rem;font-size:1rem}}
.stack td{{display:grid;grid-template-columns:9rem 1fr;gap:.75rem;border:0;padding:.1rem 0;
text-align:left;white-space:normal;min-width:0;overflow-wrap:anywhere}}
.stack td::before{{content:attr(data-label);color:var(--soft)}}
.stack td:empty{{display:none}}
.stack .badge{{justify-self:start}}
}}
@media print{{.scroll{{overflow:visible}}nav{{display:none}}}}
"""
