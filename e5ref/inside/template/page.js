// The page: its head, where one is, and all panels one below another.

function describe({ coding, columns, rows }, data) {
  const longest = Math.max(...data.texts.map((text) => text.tokens.length));
  const parts = [
    { own: `Numbers are those of the run, in ${data.dtype}.`, i2: "Numbers are rounded to 1/32767 of the largest of their point.", i1: "Numbers are rounded to 1/127 of the largest of their point." }[coding],
  ];
  if (columns < 10000) parts.push(`Of hidden states, the ${columns} dimensions that differ most between tokens are shown.`);
  if (longest > rows) parts.push(`In a text of more than ${rows} tokens a row stands for some neighbours: states are averaged, and what a pair adds is added up.`);
  parts.push("The vectors and their cosines are exact.");
  return parts.join(" ");
}

// The boxes of a live page: what is typed is computed once it pauses.
function Boxes({ texts, onData }) {
  const [typed, setTyped] = useState([texts[0], texts[1] ?? ""]);
  const [said, setSaid] = useState("");
  const first = useRef(true);
  useEffect(() => {
    if (first.current) {
      first.current = false;
      return undefined;
    }
    const stop = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const wanted = typed[1] ? typed : typed.slice(0, 1);
        const answer = await fetch("run", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wanted), signal: stop.signal });
        const body = await answer.json();
        if (answer.ok) onData(body);
        setSaid(answer.ok ? "" : body.error);
      } catch (error) {
        if (error.name !== "AbortError") setSaid("The server does not answer; start it again.");
      }
    }, 150);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [typed]);
  return html`<div class="boxes">${typed.map((value, index) => html`<label>Text ${"AB"[index]}${index ? " (may be empty)" : ""}
    <textarea rows="2" value=${value} onInput=${(event) => setTyped(typed.map((other, place) => (place === index ? event.target.value : other)))}></textarea></label>`)}
    <p role="status" class="note">${said}</p></div>`;
}

function Page() {
  const [data, setData] = useState(() => JSON.parse(document.getElementById("data").textContent));
  const [which, setWhich] = useState(0);
  const [rows, setRows] = useState([null, null]);
  const [layer, setLayer] = useState(data.layers - 1);
  const [head, setHead] = useState(0);
  const [point, setPoint] = useState(POINTS.length - 1);
  const { texts, panels } = data;
  const side = Math.min(which, texts.length - 1);
  const text = texts[side];
  // Until a token is chosen it is that which brings most to the vector.
  const begin = ({ shares }) => decode(shares).numbers.reduce((best, value, index, all) => (value > all[best] ? index : best), 0);
  const chosen = texts.map((each, index) => Math.min(rows[index] ?? begin(each), each.starts.length - 1));
  const choose = (index) => setRows(rows.map((other, place) => (place === side ? index : other)));
  const common = { text, data, chosen: chosen[side], onChoose: choose, layer, head };
  const stations = [["tokens", "Tokens"], ["embeddings", "Embeddings"], ["attention", "Attention"], ["states", "States"], ["added", "Updates"], ["average", data.pooling === "mean" ? "Average" : "First token"], ["unit", "Vector"]];
  if (data.pairs) stations.push(["pairs", "Why near?"]);
  if (data.changes.length) stations.push(["changes", "What if…"]);
  return html`
    <header>
      <p class="brand">e5ref <span>${data.model} · ${data.layers} layers · ${data.heads} heads · ${decode(text.vector).shape[0]} dimensions · ${data.dtype}</span></p>
      <h1>The way of a text through the model</h1>
      ${LIVE
        ? html`<${Boxes} texts=${texts.map((each) => each.text)} onData=${setData} />`
        : html`<div class="texts">${texts.map((each, index) => html`<blockquote>${texts.length > 1 && html`<b>${"AB"[index]}</b>`} ${each.text.length > 300 ? `${each.text.slice(0, 300)} …` : each.text}</blockquote>`)}</div>`}
      ${data.pairs && html`<p class="score">cosine <b>${show(data.pairs.as_is.cosine, 6)}</b></p>`}
    </header>
    <nav aria-label="Stations">
      <div class="stations">${stations.map(([id, name]) => html`<a href="#${id}">${name}</a>`)}</div>
      <div class="controls">
        ${texts.length > 1 && html`<${Choice} label="Text" options=${["text A", "text B"]} chosen=${side} onChoose=${setWhich} />`}
        <label>layer <select value=${layer} onChange=${(event) => setLayer(Number(event.target.value))}>
          ${Array.from({ length: data.layers }, (_, index) => html`<option value=${index}>${index + 1}</option>`)}</select></label>
      </div>
    </nav>
    <main>
      <${TokensPanel} ...${common} panel=${panels.tokens} />
      <${EmbeddingsPanel} ...${common} panel=${panels.embeddings} />
      <${AttentionPanel} ...${common} panel=${panels.attention} onHead=${setHead} />
      <${StatesPanel} ...${common} panel=${panels.states} point=${point} onPoint=${setPoint} />
      <${AddedPanel} ...${common} panel=${panels.added} />
      <${AveragePanel} ...${common} panel=${panels.average} />
      <${UnitPanel} texts=${texts} panel=${panels.unit} />
      ${data.pairs && html`<${PairsPanel} texts=${texts} data=${data} panel=${panels.pairs} rows=${chosen}
        onChoose=${(index) => setRows([index, rows[1]])} />`}
      <${ChangesPanel} data=${data} panel=${panels.changes} layer=${layer} head=${head} />
    </main>
    <footer><p>${describe(data.detail, data)} One forward pass of <code>e5ref/numpy_model.py</code> for each text; the code shown is the code that ran.</p></footer>`;
}

const place = document.getElementById("page");
place.replaceChildren();
render(html`<${Page} />`, place);
