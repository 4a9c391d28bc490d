"""How the page of a report looks beyond what all pages have, and what its script adds."""

STYLE = """
.lead { font-size: 1.1rem; margin: .6rem 0 }
ul.runs { list-style: none; padding: 0; margin: .8rem 0; color: var(--ink) }
ul.runs li { margin: .25rem 0 }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em }
.legend > span { margin-right: 1.4em }
svg.chart { width: 100%; font-size: 11px; overflow: visible }
svg text { fill: var(--soft); font-variant-numeric: tabular-nums }
svg .t { fill: var(--ink); font-size: 12.5px; font-weight: 600 }
svg .e { text-anchor: end }
svg .s { text-anchor: start }
svg .m { text-anchor: middle }
svg .g { stroke: var(--line) }
svg .d { stroke: var(--soft); stroke-dasharray: 4 4 }
svg .c { fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linejoin: round }
svg .dash { stroke-width: 1.2; stroke-dasharray: 5 4; opacity: .8 }
svg .b { fill: currentColor; opacity: .15 }
svg .p { fill: currentColor }
svg .area { fill-opacity: .75 }
svg .r { fill: none; stroke: currentColor; stroke-width: 1.5 }
svg.grid { font-size: 10.5px; max-width: none }
.grid .frame { fill: none; stroke: var(--line) }
.grid .right { fill: var(--c2) }
.grid .wrong { fill: var(--c1) }
.grid text { pointer-events: none; fill: var(--ink) }
.grid .on { fill: var(--ground) }
img.matrix { width: 100%; border: 1px solid var(--line); border-radius: 0; cursor: crosshair }
.told { min-height: 2.8em }
.tall { max-height: 38rem; overflow: auto; border-bottom: 1px solid var(--line) }
.tall .wide { overflow: visible; margin: 0 }
.tall thead th { position: sticky; top: 0; background: var(--ground); z-index: 1 }
.find { font: inherit; color: inherit; background: var(--raised); border: 1px solid var(--line); border-radius: 4px;
  padding: .25rem .6rem; margin: .4rem 0; width: 20rem; max-width: 100%; display: none }
.bars > div { display: flex; align-items: center; gap: .5rem; white-space: nowrap; font-variant-numeric: tabular-nums }
.bar { display: block; width: 7rem; height: .5rem; background: var(--raised); border-radius: 2px; overflow: hidden }
.bar > i { display: block; height: 100% }
.stack { text-align: right; font-variant-numeric: tabular-nums }
.stack.left { text-align: left; min-width: 12rem }
.several > div { display: flex; gap: .35em; white-space: nowrap; max-width: 26rem }
.several bdi { overflow: hidden; text-overflow: ellipsis }
.card .name { line-height: 1.35 }
.card figcaption { color: var(--ink) }
.card figcaption > bdi { font-weight: 600 }
.card:has(> details[open]) { grid-column: 1 / -1 }
.card:has(> details[open]) > figure:first-child { max-width: 17rem }
@media (min-width: 900px) {
  .card:has(> details[open]) { display: grid; grid-template-columns: 17rem minmax(0, 47rem); gap: 0 1.5rem }
  .card > details[open] { grid-column: 2; grid-row: 1 / 3; margin: 0 }
}
ol.guesses { list-style: none; margin: .35rem 0; padding: 0 }
ol.guesses li { display: grid; grid-template-columns: 1fr max-content; column-gap: .6rem; color: var(--soft);
  margin-bottom: .2rem }
ol.guesses li.hit { color: var(--ink) }
ol.guesses b { font-weight: 500; font-variant-numeric: tabular-nums }
ol.guesses .bar { grid-column: 1 / -1; width: 100%; height: .22rem }
pre { background: var(--raised); padding: .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.4;
  border-radius: 4px }
td:has(> .swatch) { white-space: nowrap }
@media (max-width: 600px) { .bar { width: 4.5rem } }
@media print {
  .tall { max-height: none }
  .find, .told { display: none !important }
  .several > div { max-width: 14rem }
}
"""

#: Finds classes by their name, and reads the matrices' squares.
SCRIPT = """
document.querySelectorAll("input.find").forEach(function (field) {
  var rows = Array.from(field.parentNode.querySelectorAll("tbody tr"));
  field.style.display = "block";
  field.addEventListener("input", function () {
    var wanted = field.value.toLocaleLowerCase();
    rows.forEach(function (row) {
      row.hidden = row.cells[0].textContent.toLocaleLowerCase().indexOf(wanted) < 0;
    });
  });
});
(function () {
  var element = document.getElementById("confusion-data");
  if (!element) return;
  var data = JSON.parse(element.textContent), count = data.labels.length;
  document.querySelectorAll("img.matrix").forEach(function (image, number) {
    var cells = new Map(), totals = new Array(count).fill(0), told = image.parentNode.querySelector(".told");
    data.runs[number].forEach(function (cell) {
      cells.set(cell[0] * count + cell[1], cell[2]);
      totals[cell[0]] += cell[2];
    });
    var tell = function (event) {
      var box = image.getBoundingClientRect();
      var place = function (at, start, length) {
        return Math.max(0, Math.min(count - 1, Math.floor((at - start) / length * count)));
      };
      var row = place(event.clientY, box.top, box.height), column = place(event.clientX, box.left, box.width);
      var clips = cells.get(row * count + column) || 0;
      told.textContent = data.labels[row] + " → " + data.labels[column] + ": " + clips + " of " + totals[row];
    };
    image.addEventListener("mousemove", tell);
    image.addEventListener("click", tell);
  });
})();
"""
