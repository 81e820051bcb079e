"""The page's style sheet. Whatever it says is said in words or shapes too: colour alone carries nothing."""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --panel: #f6f8fa;
  --fill: #3a78b8; --mark: #b3541e; --limit: #1b1f24; --focus: #0a58ca; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --text: #e6e9ed; --soft: #a2abb5; --line: #3b434d; --panel: #1d2228;
    --fill: #6fa8dc; --mark: #e8955b; --limit: #e6e9ed; --focus: #8ab4f8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .5rem 0; max-width: 50rem; }
.soft, caption { color: var(--soft); }
.verdict { font-size: 1.1rem; border-left: .25rem solid var(--mark); padding-left: .75rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem; margin: 1rem 0; }
.cards div { background: var(--panel); border: 1px solid var(--line); border-radius: .25rem; padding: .5rem .75rem; }
.cards dt { color: var(--soft); font-size: .875rem; }
.cards dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.cards dd small { display: block; color: var(--soft); font-size: .8125rem; line-height: 1.3; }
.wide { overflow-x: auto; margin: .75rem 0; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
.beside .wide { max-width: 100%; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; max-width: 30rem; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
figure { margin: .75rem 0; }
.row { margin: .5rem 0 0; }
.row p { margin: 0; display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; max-width: none;
  font-size: .875rem; }
.row p b { font-weight: 600; }
.row p span { color: var(--soft); font-variant-numeric: tabular-nums; }
.row svg { display: block; width: 100%; height: 3.25rem; background: var(--panel); border: 1px solid var(--line); }
.row.low svg { height: 2rem; }
.row path { fill: var(--fill); }
.row path.waits { fill: var(--mark); }
.row line { stroke: var(--line); vector-effect: non-scaling-stroke; }
.row line.limit { stroke: var(--limit); stroke-dasharray: 6 4; }
.tip { fill: transparent; }
.tip:hover { fill: var(--soft); fill-opacity: .25; }
.axis { position: relative; height: 1.5rem; font-size: .8125rem; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.axis .at0 { left: 0; transform: none; } .axis .at1 { left: 25%; } .axis .at2 { left: 50%; } .axis .at3 { left: 75%; }
.axis .at4 { right: 0; transform: none; }
summary { cursor: pointer; }
@media (max-width: 30rem) {
  body { font-size: 15px; } main { padding: .75rem; } th, td { padding: .25rem .5rem; }
  .axis .at1, .axis .at3 { display: none; }
}
@media print {
  :root { --ground: #fff; --text: #000; --soft: #444; --line: #bbb; --panel: #fff; --fill: #777; --mark: #000;
    --limit: #000; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } .wide { overflow: visible; }
  table { font-size: 8.5pt; } th, td { padding: .15rem .4rem; } thead th { white-space: normal; }
  .row, tr, .cards div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .row svg, .row path, .row line { print-color-adjust: exact; }
}
"""
