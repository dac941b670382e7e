"""How does a report look? One style sheet, for a light and a dark scheme."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #fcfcfb; --ink: #1d1f23; --muted: #6a6f78; --line: #e3e3df; --soft: #f3f3f0;
  --grid: #ecece8; --faint: #b9bcc2; --lost: #d1495b;
  --good: #2f7d4f; --fair: #a15c07; --bad: #c0392b; --none: #6a6f78;
  --c1: #2b62c9; --c2: #d9730d; --c3: #2f8f6b; --c4: #8a4fbf;
  --c5: #b5467e; --c6: #5b8dd9; --c7: #a58b1f; --c8: #5f6b7a;
  --step: #2b62c9; --compile: #8a4fbf; --data_wait: #d9730d; --validation: #45a29e;
  --checkpoint: #2f8f6b; --logging: #c9a227; --callbacks: #b5467e; --init: #7d8795;
  --restore: #a9b0ba; --idle: #d8dade;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --ink: #e6e6e3; --muted: #989da6; --line: #2c3037; --soft: #1c1f25;
    --grid: #24282e; --faint: #5a606a; --lost: #ef6f7f;
    --good: #62c08a; --fair: #e2a554; --bad: #ef7a6d; --none: #989da6;
    --c1: #6d9df0; --c2: #f0a04b; --c3: #62c3a0; --c4: #b78ce0;
    --c5: #e086b2; --c6: #9dbff5; --c7: #d6bf57; --c8: #9aa6b5;
    --step: #5b8dea; --compile: #a679d6; --data_wait: #f0a04b; --validation: #62b8b4;
    --checkpoint: #55b58f; --logging: #d6b84a; --callbacks: #d877a6; --init: #7b8594;
    --restore: #596270; --idle: #3a3f47;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header > div, nav > div { max-width: 1180px; margin: 0 auto; padding: 0 28px; }
header { padding: 36px 0 8px; }
h1 { font-size: 26px; line-height: 1.2; font-weight: 650; margin: 0; letter-spacing: -0.01em;
     overflow-wrap: anywhere; }
h2 { font-size: 18px; font-weight: 650; margin: 0 0 4px; letter-spacing: -0.005em; }
h3 { font-size: 14px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0 10px; max-width: 78ch; }
a { color: var(--c1); text-decoration: none; }
a:hover { text-decoration: underline; }
.title { display: flex; gap: 14px; align-items: center; flex-wrap: wrap; }
.status { font-size: 13px; font-weight: 600; padding: 2px 11px; border-radius: 99px;
          border: 1px solid currentColor; white-space: nowrap; }
.good { color: var(--good); } .fair { color: var(--fair); }
.bad { color: var(--bad); } .none { color: var(--none); }
.muted, .note { color: var(--muted); }
.note { font-size: 13px; }
.path { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
        color: var(--muted); overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr));
           border: 1px solid var(--line); border-radius: 8px; margin: 20px 0 6px;
           overflow: hidden; background: var(--line); gap: 1px; }
.figures > div { background: var(--page); padding: 12px 16px; min-width: 0; }
.figures b { display: block; font-size: 21px; font-weight: 600; line-height: 1.25;
             font-variant-numeric: tabular-nums; letter-spacing: -0.01em; white-space: nowrap; }
.figures span { font-size: 12.5px; color: var(--muted); display: block; }
nav { position: sticky; top: 0; z-index: 5; background: var(--page);
      border-bottom: 1px solid var(--line); margin-top: 12px; }
nav > div { display: flex; gap: 4px 16px; align-items: center; min-height: 44px;
            flex-wrap: wrap; padding-top: 6px; padding-bottom: 6px; }
nav a { color: var(--muted); font-size: 13px; }
nav a:hover { color: var(--ink); text-decoration: none; }
.switches { margin-left: auto; display: flex; gap: 10px; }
.switch { display: inline-flex; }
.switch button { font: inherit; font-size: 12px; padding: 2px 9px; color: var(--muted);
                 background: none; border: 1px solid var(--line); cursor: pointer; }
.switch button + button { border-left: 0; }
.switch button:first-child { border-radius: 6px 0 0 6px; }
.switch button:last-child { border-radius: 0 6px 6px 0; }
.switch button[aria-pressed="true"] { background: var(--soft); color: var(--ink);
                                      font-weight: 600; }
button:focus-visible, a:focus-visible, summary:focus-visible { outline: 2px solid var(--c1);
                                                               outline-offset: 2px; }
section { padding: 30px 0 6px; scroll-margin-top: 44px; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 22px 30px;
        margin-top: 14px; }
.panel { min-width: 0; border-top: 1px solid var(--line); padding-top: 10px; }
.panel.wide { grid-column: 1 / -1; }
.plot { height: 250px; }
.wide > .plot { height: 310px; }
.scroll { overflow-x: auto; margin: 10px 0 16px; }
table { border-collapse: collapse; font-size: 13.5px; min-width: 320px; }
th { text-align: left; font-weight: 500; color: var(--muted); }
th, td { padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
         overflow-wrap: anywhere; }
td.num, th.num { text-align: right; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
td .dot { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
          margin-right: 9px; }
details { border-top: 1px solid var(--line); padding: 9px 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; font-size: 14px; }
pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
      background: var(--soft); border-radius: 6px; padding: 12px 16px; overflow-x: auto;
      white-space: pre-wrap; overflow-wrap: anywhere; }
footer { color: var(--muted); font-size: 12.5px; padding: 26px 0 44px; }
.js-plotly-plot .plotly .modebar { opacity: 0; transition: opacity .15s; }
.js-plotly-plot:hover .plotly .modebar { opacity: 1; }
@media (max-width: 860px) {
  .grid { grid-template-columns: minmax(0, 1fr); }
  main, header > div, nav > div { padding: 0 16px; }
}
@media print { nav { display: none; } .panel, table { break-inside: avoid; } }
"""
