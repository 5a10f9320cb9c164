// The last stations: the average, the unit vector, why two texts are near, and what changes if.

function AveragePanel({ text, data, panel, chosen, onChoose }) {
  const names = rowNames(text);
  const of = matrix(text.points.last_hidden_state);
  const shares = Array.from(decode(text.shares).numbers);
  const pooled = matrix(text.pooled);
  const full = fullAt(of.numbers, 0.99);
  const mean = data.pooling === "mean";
  return html`<${Panel} id="average" title=${mean ? "The average" : "The first token"} panel=${panel}
    lead=${mean
      ? "The last hidden states of all tokens, [CLS] and [SEP] among them, are averaged. On the right: the part of the average's squared norm that a token brings; the parts add up to 1."
      : "This checkpoint takes the last hidden state of [CLS] and leaves out the others. On the right: what each token brings."}>
    <${HeatMap} of=${of} rows=${names} selected=${chosen} onSelect=${onChoose} full=${full}
      sums=${[shares.map((value) => value.toFixed(3))]} height=${names.length > 32 ? 14 : 22}
      label="last hidden state" names=${[(index) => names[index], columnName(of)]} />
    <h3>${mean ? "Average" : "State of [CLS]"}, norm ${show(norm(pooled.numbers), 6)}</h3>
    <${HeatMap} of=${pooled} height=${30} full=${full} label="pooled vector" names=${[() => "pooled", columnName(pooled)]} />
  <//>`;
}

function UnitPanel({ texts, panel }) {
  const vectors = texts.map((text) => decode(text.vector));
  const full = Math.max(...vectors.map(({ numbers }) => fullAt(numbers)));
  return html`<${Panel} id="unit" title="The unit vector" panel=${panel}
    lead="Divided by its norm, the vector has length 1, and a dot product of two is the cosine of the angle between them. This is what the model returns.">
    ${vectors.map(({ numbers, digits }, index) => html`<div>
      ${texts.length > 1 && html`<h3>Text ${"AB"[index]}</h3>`}
      <${Bars} numbers=${numbers} digits=${digits} full=${full} label="Unit vector of text ${"AB"[index]}" />
      <details class="all"><summary>All ${numbers.length} numbers</summary>
        <pre tabindex="0" aria-label="Numbers of text ${"AB"[index]}">${Array.from(numbers, (value) => show(value, digits)).join(", ")}</pre></details>
    </div>`)}
  <//>`;
}

function PairsPanel({ texts, data, panel, rows, onChoose }) {
  const [centred, setCentred] = useState(0);
  const shown = data.pairs[centred ? "centred" : "as_is"];
  const names = texts.map(rowNames);
  const of = matrix(shown.matrix);
  const sum = (numbers) => numbers.reduce((total, value) => total + value, 0);
  const lines = names[0].map((_, index) => sum(row(of, index).numbers));
  const columns = names[1].map((_, column) => sum(names[0].map((_, index) => of.numbers[index * of.width + column])));
  const tokens = texts.map((text) => text.tokens);
  const largest = Math.abs(shown.top[0]?.[2] ?? 1);
  const groups = Object.keys(Object.values(shown.shares)[0]);
  const average = data.reference.average_cosine;
  const narrow = names[1].length > 24;
  const signed = (value, digits) => (value < 0 ? "" : "+") + value.toFixed(digits);
  return html`<${Panel} id="pairs" title="Why are these two texts near?" panel=${panel}
    lead="Each vector is a sum of parts, one for each token. So their cosine is exactly a sum over pairs: text A down, text B across. Orange cells bring the texts together, blue ones keep them apart.">
    <${Choice} label="Vectors" options=${["as they are", "without what all texts share"]} chosen=${centred} onChoose=${setCentred} />
    <p class="total"><b>${show(shown.cosine, 6)}</b> ${centred ? "cosine after the mean of the reference texts is taken off both vectors" : "cosine of A and B"}</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Pairs of tokens">
      <${HeatMap} of=${of} rows=${names[0]} columns=${narrow ? null : names[1]} selected=${rows[0]} onSelect=${onChoose}
        sums=${[lines.map((value) => signed(value, 3)), narrow ? null : columns.map((value) => signed(value, 2))]}
        height=${names[0].length > 32 ? 14 : 28} label="What each pair of tokens adds to the cosine"
        names=${[(index) => names[0][index], (index) => names[1][index]]} />
    </div>
    <div class="two">
      <div><h3>The pairs that count most</h3>
        <table><thead><tr><th scope="col">A</th><th scope="col">B</th><th scope="col">adds</th></tr></thead>
          <tbody>${shown.top.map(([first, second, value]) => html`<tr><td>${tokens[0][first].token}</td><td>${tokens[1][second].token}</td>
            <td><${Measure} value=${value} of=${largest} digits=${4} /></td></tr>`)}</tbody></table></div>
      <div><h3>By kinds of tokens</h3>
        <table class="grid"><thead><tr><th scope="col">A down, B across</th>${groups.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
          <tbody>${Object.entries(shown.shares).map(([name, parts]) => html`<tr><th scope="row">${name}</th>
            ${groups.map((group) => html`<td>${signed(parts[group], 3)}</td>`)}</tr>`)}</tbody></table>
        <h3>How high is high?</h3>
        <p>Two of the ${data.reference.texts} reference texts, which have nothing to do with each other, have an average cosine of
          <b> ${show(average, 3)}</b> in this model: their vectors share a part. Only what lies above it says something about A and B.</p>
        <p>In E5 that part is large, and cosines lie between 0.7 and 1. E5 was trained with a temperature of 0.01: the loss divides
          cosines by it, so a difference of 0.05 counts as 5, a ratio of e⁵ = 148. Such small differences are enough, and nothing
          pushes all the vectors away from each other. Compare cosines; do not read one alone.</p></div>
    </div>
  <//>`;
}

function ChangesPanel({ data, panel, layer, head }) {
  const [which, setWhich] = useState(0);
  const change = data.changes[Math.min(which, data.changes.length - 1)];
  if (!change) return null;
  const before = data.texts[0];
  const sides = [["as it is", before], [change.name, change.text]];
  const output = `layers.${layer}.output`;
  const full = fullAt(matrix(before.points[output]).numbers, 0.99);
  const vectors = sides.map(([, text]) => decode(text.vector).numbers);
  const difference = vectors[0].map((value, index) => vectors[1][index] - value);
  const largest = Math.max(...vectors.map((numbers) => fullAt(numbers)));
  const kept = change.kept.map(([place]) => before.tokens[place].token);
  const moved = { rows: kept.length, width: data.layers + 1, digits: 4, numbers: Float64Array.from(change.moved.flat()) };
  return html`<${Panel} id="changes" title="What changes if…" panel=${panel}
    lead="The same text, changed, beside itself. Layer and head are those chosen above.">
    <${Choice} label="Change" options=${data.changes.map(({ name }) => name)} chosen=${data.changes.indexOf(change)} onChoose=${setWhich} />
    <div class="facts">
      <p><b>${show(change.cosine, 6)}</b> cosine of the two vectors</p>
      ${change.cosines.map(([was, is]) => html`<p><b>${was.toFixed(4)} → ${is.toFixed(4)}</b> cosine with text B, ${(is - was < 0 ? "" : "+") + (is - was).toFixed(4)}</p>`)}
    </div>
    <div class="two beside">${sides.map(([name, text], side) => {
      const names = rowNames(text);
      const states = matrix(text.points[output]);
      const heads = matrix(text.points[`layers.${layer}.attention_probabilities`], head);
      return html`<div><h3>${name}</h3>
        <div class="looked">${names.map((token) => html`<span>${token}</span>`)}</div>
        <h4>Attention of layer ${layer + 1}, head ${head + 1}</h4>
        <${HeatMap} weights of=${heads} rows=${names} height=${names.length > 32 ? 14 : 20} label="Attention, ${name}"
          names=${[(index) => `${names[index]} looks at`, (index) => names[index]]} />
        <h4>Output of layer ${layer + 1}</h4>
        <${HeatMap} of=${states} rows=${names} full=${full} height=${names.length > 32 ? 14 : 20} label="Output, ${name}"
          names=${[(index) => names[index], columnName(states)]} />
        <h4>Unit vector</h4>
        <${Bars} numbers=${vectors[side]} full=${largest} label="Unit vector, ${name}" /></div>`;
    })}</div>
    <h3>The difference</h3>
    <h4>Of the unit vectors, in the same scale</h4>
    <${Bars} numbers=${difference} full=${largest} label="Difference of the unit vectors" />
    <h4>How far the state of each token has moved, layer by layer, in parts of its norm</h4>
    <div class="moved"><${HeatMap} weights of=${moved} rows=${kept.length <= 64 ? kept : null} height=${kept.length > 64 ? 3 : kept.length > 32 ? 14 : 22}
      columns=${Array.from({ length: data.layers + 1 }, (_, index) => (index ? `layer ${index}` : "embed."))}
      label="How far states have moved" names=${[(index) => kept[index], (column) => (column ? `after layer ${column}` : "embeddings")]} /></div>
  <//>`;
}
