"""The style sheet of the pages: light, dark and on paper, on a phone and on a wide screen.

Text has a contrast of at least 4.5 to its ground and marks of 3 (WCAG 2.2 AA), in both schemes.
"""

CSS = '''
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #59626e; --line: #dde2e8; --panel: #f5f7f9;
  --good: #18693a; --bad: #a8420a; --note: #1d62a5;
  --c0: #2272b8; --c1: #c2570c; --c2: #2c8150; --c3: #8a4fb0; --c4: #b0365a; --c5: #75700a; --c6: #0d7d86;
  --c7: #80593a }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e7eaee; --soft: #a5afbb; --line: #323941; --panel: #1d2126;
    --good: #74cf98; --bad: #f2a162; --note: #86bdf0;
    --c0: #6cb0ee; --c1: #f0954e; --c2: #6cc490; --c3: #c79be6; --c4: #ee87a4; --c5: #cfc75a; --c6: #5fc7cf;
    --c7: #cda47f } }
* { box-sizing: border-box }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100% }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto } }
body { margin: 0 auto; padding: clamp(1rem, 4vw, 3rem); max-width: 78rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word }
a { color: var(--note); text-underline-offset: 0.2em }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--note); outline-offset: 2px }
.eyebrow { margin: 0 0 0.4rem; color: var(--soft); font-size: 0.9rem; overflow-wrap: anywhere }
h1 { margin: 0; font-size: clamp(1.9rem, 5vw, 3.2rem); font-weight: 680; line-height: 1.08; letter-spacing: -0.02em;
  text-wrap: balance }
.lead { margin: 0.9rem 0 0; max-width: 58rem; font-size: clamp(1.05rem, 1.6vw, 1.2rem) }
h2 { margin: 3.2rem 0 1.1rem; padding-top: 1.1rem; border-top: 1px solid var(--line); font-size: 1.45rem;
  line-height: 1.2; letter-spacing: -0.01em }
h3 { margin: 2rem 0 0.6rem; font-size: 1.05rem }
section > p { max-width: 58rem }
.concerns { display: grid; gap: 0.55rem; margin: 1.6rem 0 0; padding: 0; list-style: none; max-width: 62rem }
.concerns li { display: grid; grid-template-columns: 1.5rem 1fr; gap: 0.7rem; align-items: start }
.concerns svg { width: 1.5rem; height: 1.5rem }
.bad { color: var(--bad) } .good { color: var(--good) } .note { color: var(--note) }
nav { margin-top: 1.8rem; font-size: 0.95rem }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.3rem; margin: 0; padding: 0; list-style: none }
nav a { display: inline-block; padding: 0.2rem 0 }
.tiles { display: grid; gap: 0.8rem; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(9.2rem, 100%), 1fr)) }
@media screen and (min-width: 44rem) { .tiles { grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }
  .grid > figure > figcaption { min-height: 2.9rem } }
.tiles > div { padding: 0.7rem clamp(0.7rem, 2vw, 1rem) 0.8rem; border-radius: 8px; background: var(--panel) }
.tiles dt { font-size: 0.9rem }
.tiles dd { margin: 0 }
.tiles b { display: block; font-size: 1.75rem; font-weight: 600; line-height: 1.25; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums }
.tiles small, .aside { display: block; color: var(--soft); font-size: 0.82rem; line-height: 1.4;
  font-variant-numeric: tabular-nums }
.strip { display: block; width: 100%; height: 8px; margin: 0.15rem 0 0.35rem }
td .strip { width: 7rem; margin: 0.35rem 0 0 auto }
.strip rect { fill: var(--line) } .strip .zero { fill: var(--soft) }
.strip .span { fill: var(--c0); opacity: 0.45 } .strip .value { fill: var(--c0) }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 2.2rem 2rem }
figure { margin: 0; min-width: 0 }
figure.wide { grid-column: 1 / -1 }
figcaption { margin-bottom: 0.5rem; color: var(--soft); font-size: 0.9rem }
figcaption b { color: var(--ink); font-size: 1rem }
.plot svg { display: block; width: 100%; max-width: 30rem; height: auto; overflow: visible }
.plot text { fill: var(--soft); font: 11px system-ui, sans-serif; font-variant-numeric: tabular-nums }
.plot text.label { font-size: 12px; fill: var(--ink) }
.plot .lines { fill: none; stroke: var(--line); stroke-width: 1 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.thin { stroke-width: 1.2 }
.dash { stroke-dasharray: 6 4 } .dots { stroke-dasharray: 0.1 4.5 } .long { stroke-dasharray: 11 5 }
.line.soft { stroke: var(--soft) } .line.ink { stroke: var(--ink); stroke-width: 1.4 }
circle.ring { fill: var(--page); stroke: var(--ink); stroke-width: 1.6 }
path.diamond { stroke: var(--page); stroke-width: 1.5 }
rect.bar { opacity: 0.62 }
''' + ''.join(f'.c{i} {{ fill: var(--c{i}) }} .line.c{i} {{ fill: none; stroke: var(--c{i}) }}\n'
              for i in range(8)) + '''
.key { display: flex; flex-wrap: wrap; gap: 0.15rem 1.1rem; margin: 0.4rem 0 0; padding: 0; list-style: none;
  font-size: 0.85rem; font-variant-numeric: tabular-nums }
.key li { display: flex; gap: 0.45rem; align-items: center; min-width: 0; overflow-wrap: anywhere }
.key svg { flex: none; width: 22px; height: 14px; max-width: none }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
caption { padding-bottom: 0.4rem; font-weight: 600; text-align: left }
th, td { padding: 0.35rem 1.1rem 0.35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap }
th { font-weight: 500 }
thead th { color: var(--soft); vertical-align: bottom }
th:first-child { text-align: left }
tbody th { position: sticky; left: 0; width: max-content; min-width: min(8rem, 30vw); max-width: min(16rem, 40vw);
  background: var(--page); white-space: normal; overflow-wrap: anywhere }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 2rem;
  align-items: start }
.scroll + .facts { margin-top: 2rem }
.facts table { width: 100% }
.facts tbody th { color: var(--soft); width: 45% }
.facts tbody th { position: static; max-width: none }
.facts td, td.words { padding-right: 0.8rem; text-align: left; white-space: normal; overflow-wrap: anywhere }
td.words { min-width: 7rem }
.facts td.number, td.words.number { white-space: nowrap }
.matrix { margin: 0 }
.matrix th, .matrix td { padding: 0.5rem 0.9rem; border: 2px solid var(--page); text-align: center;
  vertical-align: middle }
.matrix tbody th { text-align: right; padding-left: 0; min-width: 0 }
.matrix td { min-width: 4.6rem; background: color-mix(in srgb, var(--c1) calc(4% + var(--s) * 42%), transparent);
  print-color-adjust: exact }
.matrix td.right { background: color-mix(in srgb, var(--c0) calc(4% + var(--s) * 42%), transparent) }
.matrix b { display: block; font-size: 1.15rem; font-weight: 600 }
.matrix.many th, .matrix.many td { padding: 0.1rem 0.2rem; min-width: 1.9rem; border-width: 1px; font-size: 0.75rem }
.matrix.many tbody th { white-space: nowrap; max-width: none }
.matrix.many thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; max-height: 9rem }
.matrix.many thead th:first-child { writing-mode: horizontal-tb; transform: none }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17.5rem, 100%), 1fr)); gap: 1.6rem 1.3rem;
  margin: 0; padding: 0; list-style: none }
.cards.small { grid-template-columns: repeat(auto-fill, minmax(min(9.2rem, 100%), 1fr)) }
.cards.small .pair.single { max-width: none }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; border-radius: 8px; overflow: hidden }
.pair.single { grid-template-columns: 1fr; max-width: 50% }
.pair img, .missing { display: block; width: 100%; aspect-ratio: 1; background: var(--panel); object-fit: contain }
.missing { display: grid; place-items: center; color: var(--soft); font-size: 0.875rem }
.cards p { margin: 0.35rem 0 0; line-height: 1.35; font-size: 0.92rem; overflow-wrap: anywhere }
.cards code { color: var(--soft); font-size: 0.78rem; unicode-bidi: isolate }
.heat { display: inline-block; width: 6rem; height: 0.7em; border-radius: 3px; vertical-align: baseline;
  print-color-adjust: exact }
pre { margin: 0; padding: 0.9rem 1rem; border-radius: 8px; background: var(--panel); font-size: 0.85rem;
  overflow-x: auto }
code, pre { font-family: ui-monospace, monospace }
code.flag { font-size: 0.92em; white-space: nowrap }
details { margin-top: 1.2rem }
summary { color: var(--note); cursor: pointer; padding: 0.2rem 0 }
details > .scroll, details > .facts { margin-top: 0.6rem }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: 0.875rem }
@media print {
  @page { margin: 14mm }
  :root { font-size: 9.5pt } body { max-width: none; padding: 0 } nav { display: none }
  h2 { margin-top: 1.6rem; break-after: avoid } h3, figcaption { break-after: avoid }
  figure, tr, .cards li, .tiles > div { break-inside: avoid }
  .tiles > div { border: 1px solid var(--line) }
  .scroll, pre { overflow: visible } pre { white-space: pre-wrap } .cards { grid-template-columns: repeat(3, 1fr) }
  .grid { grid-template-columns: repeat(2, 1fr) }
  details::details-content { content-visibility: visible; block-size: auto } summary { display: none } }
'''
