// The frame of every panel, and the first stations: tokens and embeddings.

// A panel: what it asks, its chart, and beside it the equation, the shapes and the code of the reference.
function Panel({ id, title, panel, lead, children }) {
  return html`<section id=${id} aria-labelledby="${id}-title">
    <h2 id="${id}-title">${title}</h2>
    <p class="lead">${lead}</p>
    ${children}
    ${panel && html`<${Source} ...${panel} of=${title} />`}
  </section>`;
}

function Source({ of, equations, shapes, functions }) {
  return html`<div class="source" role="group" aria-label="How it is computed: ${of}">
    <div class="formula" dangerouslySetInnerHTML=${{ __html: equations }}></div>
    <ul class="shapes" aria-label="Shapes">${shapes.map((line) => html`<li>${line}</li>`)}</ul>
    ${functions.map(
      ({ name, file, line, code }) => html`<details>
        <summary><b>${name}</b> <span>${file}, line ${line}</span></summary>
        <pre tabindex="0" aria-label="Code of ${name}">${code.trimEnd().split("\n").map(
          (text, index) => html`<span class="line" data-line=${line + index}>${text}${"\n"}</span>`,
        )}</pre>
      </details>`,
    )}
  </div>`;
}

// Name the rows of a text's heat maps: a token, or the first and the last of some neighbours.
function rowNames({ tokens, starts }) {
  if (starts.length === tokens.length) return tokens.map((token) => token.token);
  return starts.map((start, index) => {
    const stop = (starts[index + 1] ?? tokens.length) - 1;
    return start === stop ? tokens[start].token : `${tokens[start].token} … ${tokens[stop].token}`;
  });
}

function columnName(of) {
  return (column) => `dimension ${of.columns?.[column] ?? column}`;
}

function TokensPanel({ text, panel, chosen, onChoose }) {
  const words = [];
  text.tokens.forEach((token, index) => {
    const last = words.at(-1);
    if (token.word !== null && last?.word === token.word) last.pieces.push([token, index]);
    else words.push({ word: token.word, pieces: [[token, index]] });
  });
  const cuts = words.filter(({ pieces }) => pieces.length > 1);
  const lead =
    `The tokenizer lower-cases the text, splits it into words, and cuts a word that it does not know into pieces that ` +
    `it knows. ${text.tokens.length} tokens; ${cuts.length ? `${cuts.length} of the words ${cuts.length > 1 ? "are" : "is"} cut` : "no word is cut"}.`;
  const rowOf = (index) => text.starts.findLastIndex((start) => start <= index);
  return html`<${Panel} id="tokens" title="Text to tokens" panel=${panel} lead=${lead}>
    <ol class="words">${words.map(
      ({ pieces }) => html`<li class="word">${pieces.map(
        ([token, index]) => html`<button type="button" class="piece ${token.group.startsWith("[") ? "special" : token.group}"
          aria-pressed=${rowOf(index) === chosen} onClick=${() => onChoose(rowOf(index))}
          aria-label="${token.token}, id ${token.id}, position ${index}">
          <b>${token.token}</b><small>${token.id}</small></button>`,
      )}</li>`,
    )}</ol>
    <p class="key"><i class="special"></i> special <i class="prefix"></i> prefix <i class="words-key"></i> words · below each token its id</p>
    ${text.cut && html`<p class="note">The text is longer than the model takes: its end is cut off.</p>`}
  <//>`;
}

function EmbeddingsPanel({ text, panel, chosen, onChoose }) {
  const names = rowNames(text);
  const parts = [
    ["word", "what the token is", "+"],
    ["position", "where it stands", "+"],
    ["token_type", "which of two texts: always the first", "="],
    ["sum", "added up", "→"],
  ].map(([name, about, sign]) => [name.replace("_", " "), about, sign, text.summands[name]]);
  parts.push(["embeddings", "after LayerNorm", "", text.points.embeddings]);
  const full = fullAt(matrix(text.points.embeddings).numbers, 0.99);
  const summandFull = fullAt(matrix(text.summands.sum).numbers, 0.99);
  return html`<${Panel} id="embeddings" title="Embeddings: a sum of three" panel=${panel}
    lead="Three tables give a row each. Their sum, normalised, is what enters the first layer.">
    <${Choice} kind="chips" label="Token" options=${names} chosen=${chosen} onChoose=${onChoose} hover />
    <div class="sum">${parts.map(([name, about, sign, entry]) => {
      const one = row(matrix(entry), chosen);
      const length = entry.norms ? decode(entry.norms).numbers[chosen] : decode(text.norms.embeddings).numbers[chosen];
      return html`<div class="summand"><h3>${name}</h3><p>${about} · norm ${show(length, 6)}</p>
        <${HeatMap} quiet of=${one} height=${30} full=${name === "embeddings" ? full : summandFull}
          label="${name} of ${names[chosen]}" names=${[() => names[chosen], columnName(one)]} />
        <span class="sign" aria-hidden="true">${sign}</span></div>`;
    })}</div>
  <//>`;
}
