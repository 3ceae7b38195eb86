"""The style of reports, on top of that of every page: charts, dots, paper."""

from typing import Final

REPORT_STYLE: Final = """
:root{--c0:#2f6fb0;--c1:#c4561d;--c2:#2b8a3e;--c3:#8e44ad;--c4:#0f8b8d;--c5:#a8324a;
--grid:#e3e7eb;--mark:#b3261e}
@media (prefers-color-scheme:dark){:root{--c0:#7ab3ec;--c1:#f0965a;--c2:#77cf8a;--c3:#cf9ff0;
--c4:#5fd0d0;--c5:#ff8fa3;--grid:#2c343c;--mark:#ff8a80}}
nav{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:14px;margin:10px 0}
a{color:var(--bar)}h3{font-size:15px;margin:18px 0 6px}h1,h2,h3{overflow-wrap:anywhere}
.tile b{overflow-wrap:anywhere}.tile b.long{font-size:15px;line-height:1.35}
.note{border-left:4px solid var(--doubt);background:var(--soft);padding:8px 12px;
border-radius:4px;margin:12px 0}.note.bad{border-color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));
gap:18px 28px;margin:12px 0}
.charts figure,figure.chart,figure.map{width:auto;max-width:430px;font-size:13px}
figure.map{max-width:none}.chart>figcaption,.map>figcaption{color:var(--ink);font-weight:600}
.chart svg{display:block;width:100%;height:auto}.map .scroll{border:0}.map svg{display:block}
svg text{font:11px system-ui,sans-serif;fill:var(--pale)}
svg .count{font-size:10px;
fill:var(--ink)}svg .light{fill:var(--paper)}
svg .grid{stroke:var(--grid);fill:none}svg .axis{stroke:var(--pale);fill:none}
svg .guide{stroke:var(--pale);stroke-dasharray:4 4;fill:none}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round}svg .whisker{stroke-width:1.5;opacity:.6}
.maps{display:flex;flex-wrap:wrap;gap:4px 24px}.maps>figure.map{max-width:100%;min-width:0}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:var(--pale)}
.legend i{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:5px;
vertical-align:middle}
.dots{font-size:14px;font-variant-numeric:tabular-nums;margin:10px 0}
.row{display:grid;grid-template-columns:minmax(0,26%) minmax(0,1fr) minmax(0,172px);
grid-template-areas:"name track value";gap:0 12px;align-items:center;padding:3px 0}
.row .name{grid-area:name;overflow-wrap:anywhere}.row .value{grid-area:value;text-align:right}
.row .track,.row .stack,.row .scale{grid-area:track}
.track{position:relative;height:18px;border-left:1px solid var(--grid);
background:repeating-linear-gradient(90deg,transparent 0 calc(25% - 1px),var(--grid) 0 25%)}
.track i{position:absolute;top:8px;height:2px;background:var(--c0)}
.track b{position:absolute;top:4px;width:10px;height:10px;margin-left:-5px;border-radius:50%;
background:var(--c0)}
.track u{position:absolute;top:1px;width:2px;height:16px;margin-left:-1px;background:var(--c1)}
.scale{position:relative;height:16px;font-size:11px;color:var(--pale)}
.scale span{position:absolute;white-space:nowrap;transform:translateX(-50%)}
.scale span:first-child{transform:none}.scale span:last-child{transform:translateX(-100%)}
.stack{display:flex;height:16px;border-radius:3px;overflow:hidden;background:var(--soft)}
.stack i{display:block;height:100%}
pre{overflow-x:auto;background:var(--soft);padding:10px;border-radius:6px;font-size:12px}
.picture{width:auto;max-width:100%;height:auto;background:#fff}
.picture.broad{max-width:none;width:960px}figure.free{width:auto;max-width:100%}
.photos.wider figure,.photos.wider img{width:150px}.photos.wider img{height:150px}
.keep{white-space:nowrap}
td .spark{width:90px;height:20px;display:block}.spark polyline{fill:none;stroke:var(--c0);
stroke-width:1.5}
@media (min-width:641px){td.text{min-width:9ch}.index td.text{min-width:9ch}
.index td:nth-child(1){min-width:16ch}.index td:nth-child(4){min-width:36ch}}
@media (max-width:640px){td.text{min-width:9.5ch}
.row{grid-template-columns:minmax(0,1fr) auto;padding:4px 0;
grid-template-areas:"name value" "track track"}
.wide tr{grid-template-columns:repeat(3,minmax(0,1fr))}.wide td.num{white-space:normal}
.index td:nth-child(3){grid-column:span 2}
.index td:nth-child(4),.index td:nth-child(8){grid-column:1/-1}
.photos.wider figure{width:calc(50% - 6px)}.photos.wider img{width:100%;height:auto}}
@media (max-width:420px){td.text{min-width:7.6ch}table{font-size:11px}th,td{padding:4px 3px}}
@media print{:root{color-scheme:light;--ink:#1d2329;--pale:#5f6b76;--line:#d9dee3;--paper:#fff;
--soft:#f4f6f8;--bar:#3b76b5;--bad:#b3261e;--doubt:#8a5a00;--good:#1a7f37;--c0:#2f6fb0;--c1:#c4561d;
--c2:#2b8a3e;--c3:#8e44ad;--c4:#0f8b8d;--c5:#a8324a;--grid:#e3e7eb;--mark:#b3261e}
body{print-color-adjust:exact;-webkit-print-color-adjust:exact}nav{display:none}
main{max-width:none;padding:0}figure,tr,.tile,.row,.note{break-inside:avoid}
h2,h3,p.pale,.legend{break-after:avoid}
.scroll{overflow:visible}.charts{grid-template-columns:1fr 1fr}}
"""
