"""How the report's page looks: one readable column, on a phone, on paper, light and dark."""

from bissl_fast.evaluation.report import svg

STYLE = f"""
:root {{ color-scheme: light dark; --paper: #fdfdfc; --card: #fff; --ink: #1f2328; --muted: #59636e; --rule: #dfe3e7;
  --tint: #f4f5f6; --link: #0b62a4; --shade: rgb(31 35 40 / .14); }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --paper: #101418; --card: #14191e; --ink: #e6eaee;
  --muted: #9aa5b0; --rule: #2d343b; --tint: #191f25; --link: #7cc0f0; --shade: rgb(0 0 0 / .6); }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }}
main {{ max-width: 44rem; margin: 0 auto; padding: clamp(1.5rem, 6vw, 4.5rem) 1.25rem; }}
.over {{ color: var(--muted); font-size: .875rem; margin: 0 0 .5rem; }}
h1 {{ font-size: clamp(1.6rem, 5vw, 2.15rem); line-height: 1.2; letter-spacing: -.018em; margin: 0 0 1rem;
  overflow-wrap: anywhere; text-wrap: balance; }}
h2 {{ font-size: 1.25rem; line-height: 1.3; letter-spacing: -.008em; margin: 3.5rem 0 .75rem;
  overflow-wrap: anywhere; }}
h3 {{ font-size: 1rem; margin: 1.75rem 0 .5rem; overflow-wrap: anywhere; }}
p {{ margin: .75rem 0; overflow-wrap: break-word; }}
.lead {{ font-size: clamp(1.1rem, 3.6vw, 1.25rem); line-height: 1.5; margin-bottom: 2rem; overflow-wrap: anywhere; }}
.missing {{ color: var(--muted); border-left: 3px solid var(--rule); padding: .15rem 0 .15rem .85rem; }}
.wide {{ overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 40%, transparent) 0 0 / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / .6rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / .6rem 100% no-repeat scroll; }}
.wide + .wide {{ margin-top: 2rem; }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
table + .note {{ margin-top: .75rem; }}
caption {{ caption-side: bottom; text-align: left; }}
caption span {{ display: block; position: sticky; left: 0; padding-top: .75rem; background: var(--paper);
  max-width: min(41.5rem, calc(100vw - 2.5rem)); }}
caption, figcaption, .note {{ color: var(--muted); font-size: .9rem; line-height: 1.55; }}
th, td {{ padding: .5rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th:last-child, td:last-child {{ padding-right: .15rem; }}
th {{ font-weight: 500; }}
thead th {{ color: var(--muted); font-size: .875rem; border-bottom: 2px solid var(--rule); vertical-align: bottom; }}
td.words {{ text-align: left; white-space: normal; min-width: 14rem; }}
figure {{ margin: 0; }}
.plate {{ background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: clamp(.5rem, 2vw, 1rem); }}
figcaption {{ margin-top: .85rem; }}
figcaption .seen {{ color: var(--ink); }}
figcaption p {{ margin: .5rem 0; }}
.key, .pairs {{ list-style: none; margin: .85rem 0 0; padding: 0; }}
.key {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .875rem; }}
.key li, .pairs b {{ overflow-wrap: anywhere; }}
.pairs {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1.5rem 2rem; }}
.pairs p {{ margin: .4rem 0 0; font-size: .9rem; line-height: 1.5; }}
.strip {{ display: flex; gap: .5rem; }}
.strip img {{ display: block; height: auto; border-radius: 6px; image-rendering: pixelated; min-width: 0; }}
details {{ border-top: 1px solid var(--rule); padding: .65rem 0; }}
details:last-of-type {{ border-bottom: 1px solid var(--rule); }}
figure + details {{ margin-top: 1rem; }}
summary {{ cursor: pointer; font-weight: 500; }}
pre {{ background: var(--tint); border-radius: 8px; padding: 1rem; overflow-x: auto;
  font-size: .85rem; line-height: 1.5; }}
dl {{ display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr); gap: .35rem 1.5rem;
  font-size: .95rem; }}
dt {{ color: var(--muted); }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
a {{ color: var(--link); overflow-wrap: anywhere; }}
@media (max-width: 30rem) {{ th, td {{ padding-inline: .4rem; font-size: .875rem; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }} dd {{ margin-bottom: .6rem; }} }}
@page {{ margin: 18mm 20mm; }}
@media print {{ body {{ background: #fff; font-size: 10pt; line-height: 1.45; }} main {{ max-width: none; padding: 0; }}
  h2 {{ margin-top: 1.75rem; }} h2, h3 {{ break-after: avoid; }} figure, tr, .pairs li {{ break-inside: avoid; }}
  .wide {{ overflow: visible; background: none; }} caption span {{ position: static; max-width: none; }}
  .plate {{ max-width: 12.5cm; }} details::details-content {{ content-visibility: visible; }}
  pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }} details pre {{ columns: 3; font-size: 6.5pt; }} }}
{svg.STYLE}"""
