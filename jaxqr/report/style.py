"""The page's style sheet: readable on paper, on a phone, and in the dark."""

CSS = """
:root { --ink: #1c1e21; --soft: #5c6168; --line: #dfe2e6; --paper: #fff;
  --tint: #f4f6f8; --unseen: #f3f7fb; --up: #0064a0; --down: #b84a00;
  --accent: #0072b2; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e7e9;
  --soft: #a2a7ae; --line: #3a3f46; --paper: #17191c; --tint: #22262b;
  --unseen: #1b242d; --up: #62b5ec; --down: #f0965a; --accent: #62b5ec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans",
  sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .6rem; }
p { margin: 0 0 .9rem; max-width: 44rem; }
.kicker { color: var(--soft); margin: 0 0 .3rem; font-size: .9rem; }
#verdict { border-left: 4px solid var(--accent); background: var(--tint);
  padding: 1.1rem 1.4rem .4rem; border-radius: 0 6px 6px 0; }
.headline { font-size: 1.25rem; line-height: 1.4; font-weight: 650; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 1.4rem 0 0;
  font-size: .9rem; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 3px; }
figure { margin: 1.2rem 0 1.6rem; }
figcaption { color: var(--soft); font-size: .85rem; line-height: 1.45;
  margin-top: .5rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
.picture .scroll { background: #fff; border-radius: 6px; }
img { display: block; width: 100%; min-width: 34rem; height: auto; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4;
  font-variant-numeric: tabular-nums;
  min-width: min(100%, 30rem); }
th, td { padding: .4rem .7rem; text-align: right; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: .4rem; }
tbody th { font-weight: 400; }
thead th { font-weight: 600; color: var(--soft); font-size: .8rem; line-height: 1.3;
  vertical-align: bottom; border-bottom: 2px solid var(--line); }
tr.copy, .online td:nth-child(2), .online thead th:nth-child(2) {
  background: var(--tint); }
tr.copy th { font-style: italic; }
tr.copy > * { border-bottom: 2px solid var(--line); }
tr.unseen { background: var(--unseen); }
tr.quiet { color: var(--soft); font-size: .85rem; }
.interval { color: var(--soft); white-space: nowrap; }
.above { color: var(--up); }
.below { color: var(--down); }
.unclear { color: var(--soft); }
.online table { font-size: .85rem; }
.online th, .online td { padding: .4rem .5rem; }
.online td, .online tbody th { white-space: nowrap; }
.examples th, .examples td { text-align: left; vertical-align: top; }
.examples td { min-width: 7rem; }
.examples tbody th { font-weight: 600; min-width: 8rem; position: sticky; left: 0;
  background: var(--paper); overflow-wrap: anywhere; }
.examples small { display: block; color: var(--soft); }
.same { color: var(--soft); opacity: .75; }
dl { margin: 0 0 1rem; font-size: .92rem; }
dl > div { display: grid; grid-template-columns: 11rem 1fr; gap: 0 1rem;
  padding: .3rem 0; border-bottom: 1px solid var(--line); }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
.facts { columns: 2; column-gap: 2.5rem; }
.facts > div { grid-template-columns: 1fr auto; break-inside: avoid; }
.facts dt { font-weight: 400; }
.facts dd { font-variant-numeric: tabular-nums; }
.missing { color: var(--soft); }
code { font-size: .88em; background: var(--tint); padding: .1em .3em;
  border-radius: 3px; }
@media (max-width: 40rem) { main { padding-top: 1.5rem; } h1 { font-size: 1.5rem; }
  .facts { columns: 1; } dl > div { grid-template-columns: 1fr; }
  #verdict { padding: .9rem 1rem .2rem; } .headline { font-size: 1.1rem; } }
@media print { nav { display: none; } body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; } figure, tr, dl > div { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; } .scroll { overflow: visible; }
  img { min-width: 0; } }
"""
