// The stations inside a layer: attention, hidden states, and what each half of the layer adds.

const POINTS = ["query", "key", "value", "context", "attention_output", "feed_forward_activation", "output"];

const spoken = (name) => name.replaceAll("_", " ");

function AttentionPanel({ text, data, panel, chosen, onChoose, layer, head, onHead }) {
  const names = rowNames(text);
  const entry = text.points[`layers.${layer}.attention_probabilities`];
  const of = matrix(entry, head);
  const weights = row(of, chosen).numbers;
  const [least, greatest] = rangeOf(weights, null, true);
  const order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, 5);
  return html`<${Panel} id="attention" title="Attention: whom does each token look at?" panel=${panel}
    lead="In each head a token gives every token of its text a weight. A row of a square is one token; its weights add up to 1.">
    <${Choice} kind="chips" label="Token that looks" options=${names} chosen=${chosen} onChoose=${onChoose} hover />
    <div class="heads" role="group" aria-label="All heads of layer ${layer + 1}">
      ${Array.from({ length: data.heads }, (_, index) => html`<button type="button" class="head"
        aria-pressed=${index === head} onClick=${() => onHead(index)} aria-label="Head ${index + 1}">
        <${Thumbnail} of=${matrix(entry, index)} selected=${chosen} /><span>head ${index + 1}</span></button>`)}
    </div>
    <div class="two">
      <div>
        <h3>Layer ${layer + 1}, head ${head + 1}</h3>
        <${HeatMap} weights of=${of} rows=${names} columns=${names.length <= 32 ? names : null} selected=${chosen}
          onSelect=${onChoose} height=${names.length > 32 ? 14 : 26} label="Attention of layer ${layer + 1}, head ${head + 1}"
          names=${[(index) => `${names[index]} looks at`, (index) => names[index]]} />
      </div>
      <div>
        <h3><q>${names[chosen]}</q> looks at</h3>
        <div class="looked">${names.map((name, index) => html`<span style="--strength:${Math.round((100 * (weights[index] - least)) / (greatest - least || 1))}%">${name}</span>`)}</div>
        <table><caption class="hidden">The five greatest weights</caption>
          <thead><tr><th scope="col">token</th><th scope="col">weight</th></tr></thead>
          <tbody>${order.map((index) => html`<tr><th scope="row">${names[index]}</th>
            <td><${Measure} value=${weights[index]} of=${greatest} digits=${of.digits} kind="weight" /></td></tr>`)}</tbody>
        </table>
      </div>
    </div>
  <//>`;
}

// A heat map too small to be read: it leads to the large one.
function Thumbnail({ of, selected }) {
  const canvas = useRef();
  const dark = useDark();
  useLayoutEffect(() => paint(canvas.current, of, rangeOf(of.numbers, null, true), true), [of.numbers, dark]);
  return html`<span class="thumbnail"><canvas ref=${canvas} width=${of.width} height=${of.rows}></canvas>
    <i class="chosen-row" style="top:${(100 * selected) / of.rows}%;left:0;width:100%;height:${100 / of.rows}%"></i></span>`;
}

function StatesPanel({ text, panel, chosen, onChoose, layer, point, onPoint }) {
  const names = rowNames(text);
  const of = matrix(text.points[`layers.${layer}.${POINTS[point]}`]);
  const norms = Array.from(decode(text.norms[`layers.${layer}.${POINTS[point]}`]).numbers);
  return html`<${Panel} id="states" title="Hidden states: every named point" panel=${panel}
    lead="What the forward pass hands to its tap: a row for each token, a column for each dimension, and on the right the norm of the row.">
    <${Choice} label="Named point" options=${POINTS.map(spoken)} chosen=${point} onChoose=${onPoint} />
    <${HeatMap} of=${of} rows=${names} selected=${chosen} onSelect=${onChoose} full=${fullAt(of.numbers, 0.99)}
      sums=${[norms.map((value) => show(value, 4))]} height=${names.length > 32 ? 14 : 22}
      label="${spoken(POINTS[point])} of layer ${layer + 1}" names=${[(index) => names[index], columnName(of)]} />
    ${of.columns && html`<p class="note">The ${of.width} dimensions that differ most between tokens are shown.</p>`}
    <h3>Norms of <q>${names[chosen]}</q> in layer ${layer + 1}</h3>
    <dl class="norms">${POINTS.map((name) => html`<div><dt>${spoken(name)}</dt>
      <dd>${show(decode(text.norms[`layers.${layer}.${name}`]).numbers[chosen], 6)}</dd></div>`)}</dl>
  <//>`;
}

function AddedPanel({ text, data, panel, chosen, onChoose, layer }) {
  const names = rowNames(text);
  const halves = ["attention", "feed_forward"];
  const rows = text.added.map((added) =>
    halves.map((half) => [decode(added[half].norm).numbers[chosen], decode(added[half].cosine).numbers[chosen]]),
  );
  const incoming = (index) => decode(text.norms[index ? `layers.${index - 1}.output` : "embeddings"]).numbers[chosen];
  const longest = Math.max(...rows.flat().map(([length]) => length), ...rows.map((_, index) => incoming(index)));
  return html`<${Panel} id="added" title="What a layer adds" panel=${panel}
    lead="Each half of a layer adds an update to what comes in; then LayerNorm scales the sum. A cosine near 0 says that the update is new; below 0, that it takes away; above, that it strengthens what is there.">
    <${Choice} kind="chips" label="Token" options=${names} chosen=${chosen} onChoose=${onChoose} hover />
    <div class="scroll" tabindex="0" role="region" aria-label="Updates by layer"><table class="added">
      <caption class="hidden">Norms of the updates of ${names[chosen]}, and their cosines with what came in</caption>
      <thead><tr><th scope="col" rowspan="2">layer</th><th scope="col" rowspan="2">norm that comes in</th>
        <th scope="colgroup" colspan="2">attention adds</th><th scope="colgroup" colspan="2">feed-forward adds</th></tr>
        <tr>${halves.map(() => html`<th scope="col">norm</th><th scope="col">cosine with it</th>`)}</tr></thead>
      <tbody>${rows.map((updates, index) => html`<tr class=${index === layer ? "chosen" : ""}><th scope="row">${index + 1}</th>
        <td><${Measure} value=${incoming(index)} of=${longest} digits=${5} kind="weight" /></td>
        ${updates.map(([length, cosine]) => html`<td><${Measure} value=${length} of=${longest} digits=${5} kind="weight" /></td>
          <td><${Measure} value=${cosine} of=${1} digits=${4} /></td>`)}</tr>`)}</tbody>
    </table></div>
  <//>`;
}
