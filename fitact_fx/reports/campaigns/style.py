"""How the page looks: on a phone, on a desk, in the dark and on paper."""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1b1b; --faint: #595959; --line: #d4d4d4; --soft: #f4f5f7;
  --accent: #0b5394; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181c; --text: #e8e8e8; --faint: #a8adb5; --line: #3a3f47; --soft: #20242a; --accent: #8ab8ea; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 1rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
ul { max-width: 46rem; padding-left: 1.2rem; }
li { margin: .3rem 0; }
a { color: var(--accent); }
header p, figcaption, caption { color: var(--faint); }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; margin: .8rem 0; padding: 0; }
nav li { margin: 0; }
nav a { display: inline-block; padding: .1rem 0; }
#summary { background: var(--soft); border-left: 4px solid var(--accent); padding: .1rem 1rem .6rem; margin: 1rem 0; }
#summary h2 { border: 0; margin-top: .4rem; padding: 0; }
.scroll { overflow-x: auto; margin: .8rem 0; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .2rem 0; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
th { border-bottom: 2px solid var(--line); }
.words { text-align: left; min-width: 4.5rem; max-width: 22rem; overflow-wrap: break-word; }
.number { text-align: right; white-space: nowrap; }
dl { margin: .6rem 0; }
dl div { display: grid; grid-template-columns: 11rem 1fr; gap: 0 1rem; padding: .2rem 0;
  border-bottom: 1px solid var(--line); }
dt { color: var(--faint); }
dd { margin: 0; min-width: 0; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; max-width: 100%; font-size: .85rem;
  overflow-wrap: normal; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
figure { margin: 1.2rem 0; }
figure svg { display: block; width: 100%; max-width: 38rem; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .9rem; max-width: 46rem; margin-top: .4rem; }
figcaption strong { color: var(--text); }
@media (max-width: 34rem) {
  dl div { grid-template-columns: 1fr; }
}
@media print {
  :root { color-scheme: light; --ground: #fff; --text: #000; --faint: #333; --line: #bbb; --soft: #fff;
    --accent: #000; }
  @page { margin: 15mm; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  figure, tr, pre, dl div, #summary { break-inside: avoid; }
  figure svg { max-width: 13cm; max-height: 22cm; }
  thead { display: table-header-group; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; border: 1px solid var(--line); }
  table { font-size: 7.5pt; width: 100%; }
  th, td { padding-right: 4pt; }
  .number { white-space: normal; }
  .words { min-width: 0; }
  details:not([open]) > summary::after { content: " (folded: open it before printing)"; color: #333; }
}
"""
