// @ts-check
/**
 * How the elements look. As a constructed style sheet it needs nothing of the page's Content-Security-Policy.
 *
 * Every colour and size is a custom property that a page may set on the elements or on anything around them; README.md
 * lists them. Light and dark follow the page's own `color-scheme`.
 */

const CSS = `
:host {
  --_text: var(--durable-text, light-dark(#16201e, #e6edeb));
  --_muted: var(--durable-muted, light-dark(#55625f, #9dadaa));
  --_surface: var(--durable-surface, light-dark(#ffffff, #171f1e));
  --_sunken: var(--durable-sunken, light-dark(#eef1ef, #111817));
  --_border: var(--durable-border, light-dark(#d8dedb, #2b3735));
  --_accent: var(--durable-accent, light-dark(#0b5c55, #6fcfc2));
  --_on-accent: var(--durable-on-accent, light-dark(#ffffff, #04211e));
  --_bar: var(--durable-bar, light-dark(#2d8a7f, #4fb3a6));
  --_running: var(--durable-running, light-dark(#1d4f80, #93c4f2));
  --_warning: var(--durable-warning, light-dark(#7a4b00, #f0c377));
  --_error: var(--durable-error, light-dark(#a3231a, #ff9b91));
  --_radius: var(--durable-radius, 14px);
  --_mono: var(--durable-mono, ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace);
  display: block;
  color: var(--_text);
  font-family: var(--durable-font, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif);
  font-variant-numeric: tabular-nums;
  line-height: 1.5;
  overflow-wrap: anywhere;
}
:host(:is(durable-run, durable-runs, durable-log, durable-steps)) { container-type: inline-size; }
:host([hidden]), [hidden] { display: none !important; }
*, ::before, ::after { box-sizing: border-box; }
p, ol, h2, pre { margin: 0; padding: 0; font: inherit; }
ol { list-style: none; }
:focus-visible { outline: 3px solid var(--_accent); outline-offset: 2px; }

.card { display: grid; gap: 0.875rem; padding: clamp(1rem, 4cqi, 1.5rem); border: 1px solid var(--_border); border-radius: var(--_radius); background: var(--_surface); }
.spread { display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between; gap: 0.375rem 1rem; min-width: 0; }
.spread > :first-child { min-width: 0; }
.title { font-size: 1.125em; font-weight: 640; }
.muted { color: var(--_muted); }
.small { font-size: 0.9375em; }
.text { white-space: pre-wrap; unicode-bidi: isolate; }
.problem { padding: 0.75rem 1rem; border: 1px solid currentcolor; border-left-width: 5px; border-radius: calc(var(--_radius) / 2); color: var(--_error); background: color-mix(in srgb, currentcolor 7%, var(--_surface)); }
.survived { color: var(--_warning); font-weight: 600; }
.visually-hidden { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

.status { flex: none; display: inline-flex; align-items: center; gap: 0.5em; padding: 0.0625rem 0.75rem; border: 1px solid currentcolor; border-radius: 99px; color: var(--_muted); font-size: 0.875em; font-weight: 600; white-space: nowrap; vertical-align: middle; }
.status::before { content: ""; width: 0.5em; height: 0.5em; border-radius: 50%; background: currentcolor; }
.status[data-status="running"] { color: var(--_running); }
.status[data-status="running"]::before { animation: breathe 1.8s ease-in-out infinite; }
.status[data-status="completed"] { color: var(--_accent); }
.status:is([data-status="failed"], [data-status="dead"]) { color: var(--_error); }

.bar { height: var(--durable-bar-height, 0.625rem); border-radius: 99px; overflow: hidden; background: var(--_sunken); box-shadow: inset 0 0 0 1px var(--_border); }
.fill { height: 100%; border-radius: inherit; background: var(--_bar); transition: inline-size 0.2s linear; }
.bar.is-endless .fill { inline-size: 30% !important; animation: wander 2.4s ease-in-out infinite alternate; }
.bar.is-endless:is([data-status="pending"], [data-status="waiting"]) .fill { inline-size: 100% !important; opacity: 0.25; animation: none; }
.bar:is([data-status="failed"], [data-status="dead"]) .fill { background: var(--_error); }
.bar[data-status="cancelled"] .fill { background: var(--_muted); }
.percent { flex: none; font-weight: 640; }
.progress { display: grid; gap: 0.375rem; }
.progress > .spread { flex-wrap: nowrap; align-items: baseline; }

.marks { display: flex; flex-wrap: wrap; align-items: center; gap: 3px; }
.mark { width: 6px; height: 13px; margin-block: 2px; border-radius: 2px; background: var(--_bar); }
.mark:is([data-status="failed"], [data-status="cancelled"]) { background: var(--_error); }
.mark.is-after-break { margin-left: 12px; position: relative; }
.mark.is-after-break::before { content: ""; position: absolute; left: -9px; top: -4px; width: 2px; height: 21px; background: var(--_warning); }
.step { display: flex; justify-content: space-between; gap: 1rem; padding: 0.25rem 0; border-bottom: 1px solid var(--_border); }
.step:last-child { border-bottom: 0; }

.graph { display: grid; gap: 0.25rem; }
.node { --_node: var(--_muted); position: relative; padding: 0 0 0.875rem 1.75rem; }
.node:last-child { padding-bottom: 0; }
.node::before { content: ""; position: absolute; left: 0.25rem; top: 0.4375rem; width: 0.75rem; height: 0.75rem; border: 2px solid var(--_node); border-radius: 50%; background: var(--_surface); }
.node:not(:last-child)::after { content: ""; position: absolute; left: calc(0.625rem - 1px); top: 1.4375rem; bottom: -0.1875rem; width: 2px; background: var(--_border); }
.node[data-status="completed"] { --_node: var(--_bar); }
.node[data-status="completed"]::before { background: var(--_node); }
.node[data-status="running"] { --_node: var(--_running); }
.node[data-status="running"]::before { animation: breathe 1.8s ease-in-out infinite; background: var(--_node); }
.node[data-status="waiting"] { --_node: var(--_running); }
.node[data-status="failed"] { --_node: var(--_error); }
.node[data-status="failed"]::before { background: var(--_node); }
.node[data-kind="compensation"] { --_node: var(--_warning); }
.node[data-kind="compensation"]::before { border-radius: 3px; }
.node-body { display: grid; gap: 0.125rem; }
.node-body > .graph { margin-top: 0.5rem; }
.node-head { display: flex; flex-wrap: wrap; align-items: center; gap: 0.125rem 0.625rem; }
.node-name { font-weight: 600; }
.kind { padding: 0 0.5rem; border: 1px solid var(--_border); border-radius: 99px; background: var(--_sunken); color: var(--_muted); font-size: 0.8125em; line-height: 1.5; }
.state { flex: none; }
.node[data-status="waiting"] > .node-body > .spread > .state { color: var(--_running); font-weight: 600; }
.node[data-status="failed"] > .node-body > .spread > .state, .reason[data-status="failed"] { color: var(--_error); }
.reason { color: var(--_muted); }
.node-child { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 0.625rem; }

details > summary { width: fit-content; max-width: 100%; cursor: pointer; border-radius: 4px; color: var(--_accent); font-weight: 550; }
details[open] > summary { margin-bottom: 0.375rem; }
pre, .lines { max-height: var(--durable-log-height, 20rem); padding: 0.75rem 1rem; overflow: auto; border: 1px solid var(--_border); border-radius: calc(var(--_radius) / 2); background: var(--_sunken); font: 0.8125rem/1.65 var(--_mono); white-space: pre-wrap; }
.line { display: flex; gap: 1rem; }
.line > .text { min-width: 0; }
.time, .fields, .line[data-level="debug"] { color: var(--_muted); }
.time { flex: none; }
.line[data-level="warning"] { color: var(--_warning); }
.line[data-level="error"] { color: var(--_error); }
.level { font-weight: 700; }

button { min-height: 2.5rem; padding: 0.25rem 1rem; border: 1px solid var(--_muted); border-radius: calc(var(--_radius) / 2); background: transparent; color: var(--_text); font: inherit; font-weight: 600; cursor: pointer; }
button:hover:not(:disabled) { border-color: var(--_text); background: color-mix(in srgb, var(--_accent) 12%, transparent); }
button:is(:disabled, [aria-disabled="true"]) { cursor: not-allowed; opacity: 0.55; }
button.primary { border-color: var(--_accent); background: var(--_accent); color: var(--_on-accent); }
button.primary:hover:not(:disabled) { border-color: var(--_accent); background: color-mix(in srgb, var(--_accent) 86%, var(--_text)); }
button.danger { border-color: var(--_error); color: var(--_error); }
button.plain { min-height: 0; padding: 0; border: 0; border-radius: 4px; color: var(--_accent); text-align: start; text-decoration: underline; text-underline-offset: 0.18em; overflow-wrap: anywhere; }
.buttons { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem; }
.foot > slot { display: block; flex: 1 1 16rem; color: var(--_muted); }
.table .buttons { justify-content: flex-end; }
.table button:not(.plain) { min-height: 2.125rem; padding: 0 0.75rem; font-size: 0.9375em; }
a { color: var(--_accent); text-underline-offset: 0.18em; }

.table { width: 100%; border-collapse: collapse; }
.table caption { text-align: start; }
.table th, .table td { padding: 0.625rem 0.75rem 0.625rem 0; border-bottom: 1px solid var(--_border); text-align: start; vertical-align: middle; font-weight: 400; }
.table thead th { color: var(--_muted); font-size: 0.875em; font-weight: 600; white-space: nowrap; }
.table tbody th { width: 40%; font-weight: 600; }
.table .bar { width: 6rem; height: 0.375rem; }
.table td:last-child { padding-right: 0; }
.pager { margin-top: 0.75rem; }

@container (max-width: 34rem) {
  .table thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .table tr { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 0.75rem; padding: 0.75rem 0; border-bottom: 1px solid var(--_border); }
  .table th, .table td, .table tbody th { padding: 0; border: 0; width: auto; }
  .table tbody th { flex: 1 0 100%; }
  .table td.actions { margin-left: auto; }
  .line { flex-direction: column; gap: 0; }
  .line + .line { margin-top: 0.375rem; }
}
@media (prefers-reduced-motion: reduce) {
  .fill { transition: none; }
  .fill, .status::before, .node::before { animation: none !important; }
}
@media (forced-colors: active) {
  .fill, .mark, .status::before, .node::before { forced-color-adjust: none; }
}
@keyframes breathe { 50% { opacity: 0.3; } }
@keyframes wander { from { margin-inline-start: 0; } to { margin-inline-start: 70%; } }
`;

export const styles = new CSSStyleSheet();
styles.replaceSync(CSS);
