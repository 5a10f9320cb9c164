// Numbers of the run, and the three charts of the page: a heat map, bars, and tokens to choose from.

const { html, render, useEffect, useLayoutEffect, useMemo, useRef, useState } = preact;

const KINDS = { f4: Float32Array, f8: Float64Array, i2: Int16Array, i1: Int8Array };
const DIGITS = { f4: 7, f8: 16, i2: 4, i1: 2 }; // that a number has by its coding
const arrays = new WeakMap();

// Read an array of `data.py`: its shape and its numbers, row after row.
function decode(entry) {
  if (!arrays.has(entry)) {
    const bytes = Uint8Array.from(atob(entry.bytes), (character) => character.charCodeAt(0));
    const stored = new KINDS[entry.coding](bytes.buffer);
    const numbers = entry.coding[0] === "i" ? Float64Array.from(stored, (number) => number * entry.scale) : stored;
    arrays.set(entry, { shape: entry.shape, numbers, columns: entry.columns, digits: DIGITS[entry.coding] });
  }
  return arrays.get(entry);
}

// Take a matrix: all of an array of two axes, or one head of attention, or a vector as one row.
function matrix(entry, head) {
  const { shape, numbers, columns, digits } = decode(entry);
  const [rows, width] = shape.length === 1 ? [1, shape[0]] : shape.slice(-2);
  const start = (head ?? 0) * rows * width;
  return { rows, width, digits, columns, numbers: numbers.subarray(start, start + rows * width) };
}

// Take one row of a matrix.
function row(of, index) {
  return { ...of, rows: 1, numbers: of.numbers.subarray(index * of.width, (index + 1) * of.width) };
}

// Write a number with so many significant digits.
function show(number, digits = 7) {
  if (number === 0) return "0";
  return Math.abs(number) < 1e-4 ? number.toExponential(Math.min(digits, 7) - 1) : number.toPrecision(digits);
}

// The magnitude at which colours are full: the largest, or that which 99 of 100 numbers stay below.
function fullAt(numbers, share = 1) {
  const magnitudes = Float64Array.from(numbers, Math.abs).sort();
  return magnitudes[Math.min(magnitudes.length - 1, Math.floor(share * magnitudes.length))] || 1;
}

function norm(numbers) {
  return Math.hypot(...numbers);
}

// The magnitudes at which a heat map has no colour and full colour.
function rangeOf(numbers, full, weights) {
  return weights ? [Math.min(...numbers), Math.max(...numbers)] : [0, full ?? fullAt(numbers)];
}

// Whether the reader wants dark colours; charts on a canvas are painted anew when that changes.
function useDark() {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [dark, setDark] = useState(query.matches);
  useEffect(() => {
    const listen = (event) => setDark(event.matches);
    query.addEventListener("change", listen);
    return () => query.removeEventListener("change", listen);
  }, []);
  return dark;
}

function color(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

// Paint a number a pixel. Signed numbers go from no colour at 0 to full colour at range[1] of either sign; of weights,
// the least has no colour and the greatest is full.
function paint(canvas, { rows, width, numbers }, range, weights) {
  const [zero, positive, negative] = ["--zero", weights ? "--weight" : "--positive", "--negative"].map(color);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, rows);
  numbers.forEach((number, place) => {
    const strength = Math.min(1, (Math.abs(number) - range[0]) / (range[1] - range[0] || 1));
    const end = number < 0 ? negative : positive;
    for (let part = 0; part < 3; part++) image.data[4 * place + part] = zero[part] + strength * (end[part] - zero[part]);
    image.data[4 * place + 3] = 255;
  });
  context.putImageData(image, 0, 0);
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// A heat map that tells its numbers to the pointer and to the arrow keys.
//   of: a matrix; label: what it shows; names: [row → name, column → name]
//   rows, columns: names beside and above it, with `sums` at the other ends if there are any
//   weights: whether its numbers are weights, none below 0; full: where other numbers have full colour
function HeatMap({ of, label, names, full, weights, rows, columns, sums, height = 18, selected, onSelect, quiet }) {
  const canvas = useRef();
  const [place, setPlace] = useState(null);
  const dark = useDark();
  const range = useMemo(() => rangeOf(of.numbers, full, weights), [of.numbers, full]);
  useLayoutEffect(() => paint(canvas.current, of, range, weights), [of.numbers, range, dark]);
  const at = place && [Math.min(place[0], of.rows - 1), Math.min(place[1], of.width - 1)];
  const bound = (number, size) => Math.max(0, Math.min(size - 1, number));
  const point = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const part = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    setPlace([bound(Math.floor(part[0] * of.rows), of.rows), bound(Math.floor(part[1] * of.width), of.width)]);
  };
  const press = (event) => {
    if (event.key in STEPS) {
      event.preventDefault();
      const [down, right] = STEPS[event.key];
      const from = at ?? [selected ?? 0, 0];
      setPlace([bound(from[0] + down, of.rows), bound(from[1] + right, of.width)]);
    } else if (event.key === "Enter" && at) onSelect?.(at[0]);
  };
  const told = at && `${names[0](at[0])}, ${names[1](at[1])}: ${show(of.numbers[at[0] * of.width + at[1]], of.digits)}`;
  const box = ([line, column], wide, tall) =>
    `top:${(100 * line) / of.rows}%;left:${(100 * column) / of.width}%;` +
    `width:${wide ? 100 : 100 / of.width}%;height:${tall ? 100 : 100 / of.rows}%`;
  const beside = `height:${of.rows * height}px;font-size:${Math.min(12.5, 0.85 * height)}px`; // a line for each row
  return html`<div class="heat ${quiet ? "quiet" : ""} ${rows ? "with-rows" : ""} ${sums ? "with-sums" : ""}">
    ${columns && html`<div class="column-names" aria-hidden="true" style="--n:${of.width}">
      ${columns.map((name) => html`<span>${name}</span>`)}
    </div>`}
    ${rows && html`<div class="row-names" aria-hidden="true" style=${beside}>
      ${rows.map((name, index) => html`<span class=${index === selected ? "chosen" : ""}>${name}</span>`)}
    </div>`}
    <div class="cells" role="application" aria-roledescription="heat map" tabindex="0"
      aria-label="${label}. Arrow keys read it cell by cell." style="height:${of.rows * height}px"
      onPointerMove=${point} onPointerLeave=${() => setPlace(null)} onBlur=${() => setPlace(null)}
      onFocus=${() => setPlace(place ?? [selected ?? 0, 0])} onKeyDown=${press}
      onClick=${() => at && onSelect?.(at[0])}>
      <canvas ref=${canvas} width=${of.width} height=${of.rows}></canvas>
      ${selected !== undefined && of.rows > 1 && html`<i class="chosen-row" style=${box([selected, 0], true)}></i>`}
      ${at && html`<i class="cursor" style=${box(at)}></i>`}
    </div>
    ${sums && html`<div class="row-sums" aria-hidden="true" style=${beside}>${sums[0].map((sum) => html`<span>${sum}</span>`)}</div>`}
    ${sums?.[1] && html`<div class="column-sums" aria-hidden="true" style="--n:${of.width}">
      ${sums[1].map((sum) => html`<span>${sum}</span>`)}
    </div>`}
    <output class="told" aria-live="polite">${told ?? (quiet ? "" : weights ? `colours from ${show(range[0], 3)} to ${show(range[1], 3)}` : `full colour at ${show(range[1], 3)}`)}</output>
  </div>`;
}

// Bars up and down from a line, one for each number of a vector.
function Bars({ numbers, label, digits = 7, full }) {
  const [place, setPlace] = useState(null);
  const largest = full ?? fullAt(numbers);
  const bars = (sign) =>
    Array.from(numbers, (number, x) => (number * sign > 0 ? `M${x + 0.1} 50V${50 - (48 * number) / largest}h.8V50` : ""));
  const point = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    setPlace(Math.max(0, Math.min(numbers.length - 1, Math.floor(((event.clientX - box.left) / box.width) * numbers.length))));
  };
  const press = (event) => {
    const step = STEPS[event.key]?.[1];
    if (!step) return;
    event.preventDefault();
    setPlace(Math.max(0, Math.min(numbers.length - 1, (place ?? 0) + step)));
  };
  return html`<div class="bars">
    <div class="cells" role="application" aria-roledescription="bar chart" tabindex="0"
      aria-label="${label}. Arrow keys read it bar by bar."
      onPointerMove=${point} onPointerLeave=${() => setPlace(null)} onKeyDown=${press}
      onFocus=${() => setPlace(place ?? 0)} onBlur=${() => setPlace(null)}>
      <svg viewBox="0 0 ${numbers.length} 100" preserveAspectRatio="none" aria-hidden="true">
        <path class="positive" d=${bars(1).join("")} /><path class="negative" d=${bars(-1).join("")} />
        <path class="axis" d="M0 50H${numbers.length}" />
      </svg>
      ${place !== null && html`<i class="cursor" style="top:0;height:100%;left:${(100 * place) / numbers.length}%;width:${100 / numbers.length}%"></i>`}
    </div>
    <output class="told" aria-live="polite">
      ${place === null ? `from ${show(Math.min(...numbers), 3)} to ${show(Math.max(...numbers), 3)}` : `dimension ${place}: ${show(numbers[place], digits)}`}
    </output>
  </div>`;
}

// One of several, chosen by click, by arrow keys, and with `hover` by the pointer too.
//   options: what each shows; chosen: its number
function Choice({ label, options, chosen, onChoose, hover, kind = "segments", strengths }) {
  const group = useRef();
  const press = (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (chosen + step[0] + step[1] + options.length) % options.length;
    onChoose(next);
    group.current.children[next].focus();
  };
  return html`<div class=${kind} role="radiogroup" aria-label=${label} ref=${group} onKeyDown=${press}>
    ${options.map(
      (option, index) => html`<button type="button" role="radio" aria-checked=${index === chosen}
        tabindex=${index === chosen ? 0 : -1} onClick=${() => onChoose(index)}
        onPointerEnter=${(event) => hover && event.pointerType === "mouse" && onChoose(index)}
        style=${strengths ? `--strength:${Math.round(100 * strengths[index])}%` : ""}>${option}</button>`,
    )}
  </div>`;
}

// A number with a bar as long as its part of the largest.
function Measure({ value, of, digits = 4, kind = value < 0 ? "negative" : "positive" }) {
  return html`<span class="measure"><span class="number">${show(value, digits)}</span>
    <i class=${kind} style="width:${Math.min(100, (100 * Math.abs(value)) / of)}%"></i></span>`;
}
