"""Train e5ref-nano: E5's recipe in miniature, from naturally paired text to a checkpoint that `e5ref.load` reads.

    python weights/train_nano.py OUTPUT --data FOLDER --teacher NAME_OR_FOLDER

Wang et al. (arXiv 2212.03533) start from a trained BERT, pre-train on pairs of texts that belong together (section 3),
and then learn from labels and a stronger model's scores (section 4.2). Here there are no labels, and everything happens
at once:

- **Pairs** (`read_pairs`): a question and its answer; a heading and its paragraph, a sentence and its paragraph, two
  paragraphs in a row; a word and its definition, example or synonym; a sentence and the same sentence with words
  changed.
- **Contrast**: among all passages of a batch, a query must find its own (InfoNCE).
- **Distillation**: each vector is drawn towards the vector that a teacher, a trained model, gives the text without
  prefix; and it must rank thousands of other texts as the teacher ranks them.
- **A start**: the vocabulary is the part of the teacher's that is used most. A token's embedding starts as the
  teacher's vector of that token alone. The layers start at random.

The data folder holds some of these files, an object a line: openstax.jsonl.gz (a paragraph: book, title, section,
text), wordnet.jsonl.gz (a meaning: terms, pos, definition, examples), medquad.jsonl.gz (a question: question, focus,
answer) and factbook.jsonl.gz (an entry: country, section, field, text). The same seed gives the same weights on the
same machine.
"""

import gzip
import hashlib
import itertools
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import safe_open
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import e5ref
from e5ref import jax_model
from e5ref.checkpoint.config import BertConfig
from e5ref.checkpoint.params import BertParams, build_params, leaves
from e5ref.checkpoint.prompts import E5_PROMPTS
from e5ref.engines.batching import pad_ids
from e5ref.evaluation import evaluate_retrieval, evaluate_sts
from e5ref.files.whole import written_whole
from e5ref.terminal.progress import progress_bar

CONFIG = BertConfig(
    model_type="bert",
    vocab_size=16000,
    hidden_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=512,
    max_position_embeddings=256,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    pad_token_id=0,
)
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ORDINARY = re.compile(r"(##)?[a-z0-9]+|[!-~]")  # tokens of English; symbols and letters beyond ASCII are counted
MIN_LETTER_COUNT = 50  # a letter beyond ASCII gets a token if it occurs at least this often in the texts

TEMPERATURE = 0.05  # of InfoNCE; the paper uses 0.01, with 32,000 passages to tell apart
CONTRAST = 0.1  # weight of InfoNCE beside distillation
RANKING = 0.2  # weight of the teacher's ranking of other texts
RANKED = 4096  # texts that are ranked with each batch
LENGTHS = (16, 32, 64, 128, 256)  # lengths that texts are padded to; each pair of lengths compiles one program
BATCH_TOKENS = 4096  # tokens of a batch, padding counted
LEARNING_RATE = 1e-3
WARM_UP = 0.05  # share of the steps in which the learning rate rises
HELD_OUT = 1000  # pairs that are never trained on

# Sections of a textbook that are lists of sources, not prose.
NOT_PROSE = re.compile(
    r"References|Bibliography|Suggested|Sources|Reading|Articles|Websites|Videos|Further|Preface|contributors"
)
EXCERPT_WORDS = (40, 80, 160)  # a long text is cut at the end of a sentence, to at most one of these
LINKS = "These resources address"  # an answer of this kind is a list of links
SENTENCE_END = re.compile(r"(?<=[.!?])[”\"']?\s+(?=[“\"']?[A-Z])")
QUESTIONS = (
    *("what is {}", "what are {}", "what does {} mean", "who or what was {}", "how does {} work"),
    *("why is {} important", "define {}", "{} definition", "meaning of {}", "explain {}", "{} examples"),
    *("facts about {}", "causes of {}", "types of {}", "information about {}"),
)
OF_COUNTRIES = ("{field} of {country}", "what is the {field} of {country}", "{country} {field}", "{field} in {country}")


class Pair(NamedTuple):
    """Two texts, and how they belong together."""

    query: str
    passage: str
    kind: str


def read_pairs(data: Path, seed: int) -> list[Pair]:
    """Read all pairs of the data folder, in random order."""
    rng = random.Random(seed)
    meanings = list(read_lines(data / "wordnet.jsonl.gz"))
    pairs = [
        *textbook_pairs(read_lines(data / "openstax.jsonl.gz"), rng),
        *dictionary_pairs(meanings, rng),
        *question_pairs(read_lines(data / "medquad.jsonl.gz"), rng),
        *country_pairs(read_lines(data / "factbook.jsonl.gz"), rng),
    ]
    sentences = [pair.query for pair in pairs if pair.kind in ("sentence", "example")]
    pairs += changed_pairs([text for text in sentences if 4 <= len(text.split()) <= 22], meanings, rng)
    rng.shuffle(pairs)
    return pairs


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a gzipped file of JSON lines; nothing if the file does not exist."""
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)


def clean(text: str) -> str:
    """Leave out the "()" that removed references have left behind, and all white space but single blanks."""
    return " ".join(re.sub(r"\s*\(\s*\)", "", text).split())


def excerpt(sentences: list[str], rng: random.Random) -> str:
    """Return some sentences in a row, about as many words as chance wants."""
    words = rng.choice(EXCERPT_WORDS)
    ends = list(itertools.accumulate(len(sentence.split()) for sentence in sentences))
    starts = [index for index in range(len(sentences)) if index == 0 or ends[-1] - ends[index - 1] >= words]
    first = rng.choice(starts)
    before = ends[first - 1] if first else 0
    last = max([index for index, end in enumerate(ends) if end - before <= words], default=first)
    return " ".join(sentences[first : max(first, last) + 1])


def ask(term: str, rng: random.Random) -> str:
    """Ask for a term, half of the time as a question."""
    return rng.choice(QUESTIONS).format(term) if rng.random() < 0.5 else term


def textbook_pairs(paragraphs: Iterator[dict[str, Any]], rng: random.Random) -> Iterator[Pair]:
    """Pair each paragraph with its heading, with one of its sentences, and with the paragraph before it."""
    before, its_place = "", ("", "")
    for paragraph in paragraphs:
        text, section = clean(paragraph["text"]), clean(paragraph["section"])
        title = clean("".join(letter for letter in paragraph["title"] if ord(letter) < 0x2600))  # no pictograms
        place = (title, section)
        if NOT_PROSE.search(f"{title} {section}") or "http" in text or not 12 <= len(text.split()) <= 230:
            before = ""
            continue
        text = excerpt(SENTENCE_END.split(text), rng)
        sentences = [part for part in SENTENCE_END.split(text) if 4 <= len(part.split()) <= 40]
        if len(sentences) > 2:
            index = rng.randrange(len(sentences))
            yield Pair(sentences[index], text, "sentence")
            if index + 1 < len(sentences):
                yield Pair(sentences[index], sentences[index + 1], "next sentence")
        if rng.random() < 0.5:
            yield Pair(ask(section or title, rng) if rng.random() < 0.5 else f"{title} {section}", text, "heading")
        if before and place == its_place:
            yield Pair(before, text, "next paragraph")
        before, its_place = text, place


def dictionary_pairs(meanings: list[dict[str, Any]], rng: random.Random) -> Iterator[Pair]:
    """Pair a word of each meaning with its definition and a synonym, and the examples with the definition."""
    for meaning in meanings:
        definition = clean(meaning["definition"])
        term, *others = rng.sample(meaning["terms"], len(meaning["terms"]))
        named = f"{rng.choice(meaning['terms'])}: {definition}"
        yield Pair(ask(term, rng), definition if rng.random() < 0.6 else named, "definition")
        if others and rng.random() < 0.4:
            yield Pair(term, others[0], "synonym")
        for example in map(clean, meaning["examples"][:2]):
            if len(example.split()) >= 3:
                yield Pair(example, definition, "example")


def question_pairs(questions: Iterator[dict[str, Any]], rng: random.Random) -> Iterator[Pair]:
    """Pair a question, or what it is about, with excerpts from its answer."""
    for line in questions:
        asked = clean(line["question"]).removesuffix(" ?").replace("What is (are)", rng.choice(("What is", "What are")))
        sentences = SENTENCE_END.split(clean(line["answer"]))
        if line["answer"].startswith(LINKS) or len(sentences) < 2:
            continue
        yield Pair(asked + rng.choice(("", "?")), excerpt(sentences[:8], rng), "question")
        if len(sentences) > 8:
            about = asked if rng.random() < 0.5 else ask(clean(line["focus"]), rng)
            yield Pair(about, excerpt(sentences[8:], rng), "question")


def country_pairs(entries: Iterator[dict[str, Any]], rng: random.Random) -> Iterator[Pair]:
    """Pair a field of a country with what the entry says."""
    for entry in entries:
        field, country = entry["field"].lower().replace(" - ", " "), entry["country"]
        text = excerpt(SENTENCE_END.split(clean(entry["text"])), rng)
        asked = rng.choice(OF_COUNTRIES).format(field=field, country=country)
        yield Pair(asked, text if rng.random() < 0.3 else f"{country}: {text}", "entry")


def changed_pairs(sentences: list[str], meanings: list[dict[str, Any]], rng: random.Random) -> Iterator[Pair]:
    """Pair sentences with a copy in which a few words are exchanged, left out or moved."""
    words: defaultdict[str, list[str]] = defaultdict(list)  # part of speech -> words
    part_of_speech: dict[str, str] = {}
    for meaning in meanings:
        part = meaning["pos"].replace("s", "a")  # WordNet's satellite adjectives are adjectives
        for term in meaning["terms"]:
            if term.isalpha() and term.islower():
                words[part].append(term)
                part_of_speech.setdefault(term, part)
    for sentence in sentences:
        changed = sentence.split()
        for _ in range(rng.randint(1, max(1, len(changed) // 4))):
            index, chance = rng.randrange(len(changed)), rng.random()
            part = part_of_speech.get(changed[index].strip(".,;:!?“”\"'").lower())
            if chance < 0.7 and part:
                changed[index] = rng.choice(words[part])
            elif chance < 0.85 and len(changed) > 3:
                del changed[index]
            elif chance >= 0.7 and len(changed) > 3:
                other = rng.randrange(len(changed))
                changed[index], changed[other] = changed[other], changed[index]
        if " ".join(changed) != sentence:
            yield Pair(sentence, " ".join(changed), "changed")


def choose_tokens(vocab: list[str], texts: list[str], size: int) -> list[str]:
    """Choose from the teacher's tokens in order of id. BERT's vocabulary begins with what is used most.

    The prompts' words go first: one of them is in every text, and must be one token. Letters and symbols beyond ASCII
    are chosen if the texts have them.
    """
    prompts = set(re.findall(r"\w+", " ".join(E5_PROMPTS.values())))
    counts = Counter("".join(texts).lower())
    used = {letter for letter, count in counts.items() if count >= MIN_LETTER_COUNT}
    kept = [token for token in vocab if ORDINARY.fullmatch(token) or token.removeprefix("##") in used]
    kept.sort(key=lambda token: token not in prompts)
    return [*SPECIAL_TOKENS, *kept[: size - len(SPECIAL_TOKENS)]]


def bert_tokenizer(vocab: dict[str, int]) -> Tokenizer:
    """Build BERT's uncased tokenizer over a vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def texts_sha256(teacher: e5ref.E5, texts: list[str]) -> str:
    """Hash the teacher and the texts that it is asked for."""
    return hashlib.sha256("\0".join([teacher.checkpoint.weights_sha256, *texts]).encode()).hexdigest()


def teach(teacher: e5ref.E5, texts: list[str], asked: str, path: Path) -> np.ndarray:
    """Ask the teacher for the vectors of all texts, [n, its D] in float16, and keep them in a file.

    `asked` is the `texts_sha256` of teacher and texts.
    """
    if path.exists():
        with safe_open(path, "np") as file:
            if file.metadata()["texts_sha256"] == asked:
                return file.get_tensor("vectors")
    vectors = teacher.encode(texts).astype(np.float16)
    with written_whole(path) as file:
        file.write(save({"vectors": vectors}, {"texts_sha256": asked}))
    return vectors


def first_params(config: BertConfig, token_vectors: np.ndarray, seed: int) -> BertParams:
    """Start with the teacher's vectors of the tokens, [V, D]; the layers' matrices are random, as in BERT."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> jax.Array:
        if name == "embeddings.word_embeddings.weight":
            return jnp.asarray(token_vectors, jnp.float32)
        if name.endswith("LayerNorm.weight"):
            return jnp.ones(shape)
        if len(shape) == 1 or name.startswith("embeddings."):
            return jnp.zeros(shape)
        return jnp.asarray(rng.normal(0, 0.02, shape), jnp.float32)

    return build_params(tensor, config)


class Batch(NamedTuple):
    """Padded ids of pairs, and the teacher's vectors."""

    query_ids: np.ndarray  # [B, Tq]
    query_mask: np.ndarray  # [B, Tq]
    passage_ids: np.ndarray  # [B, Tp]
    passage_mask: np.ndarray  # [B, Tp]
    query_targets: np.ndarray  # [B, D], of unit L2 norm
    passage_targets: np.ndarray  # [B, D]
    natural: np.ndarray  # [B], 1 if the texts belong together, 0 if one was made from the other
    ranked: np.ndarray  # [RANKED, D], the teacher's vectors of any texts


class Data(NamedTuple):
    """Everything that training reads, by the index of a text."""

    query_ids: list[list[int]]  # of each text with "query: " before it
    passage_ids: list[list[int]]  # of each text with "passage: " before it
    targets: np.ndarray  # [texts, D], the teacher's vectors, of unit L2 norm
    pairs: np.ndarray  # [pairs, 2], query and passage
    natural: np.ndarray  # [pairs]

    def batch(self, pairs: list[int], *lengths: int) -> Batch:
        """Make a batch of some pairs; queries and passages are padded to these two lengths."""
        queries, passages = self.pairs[pairs].T
        sides = [self.query_ids[text] for text in queries], [self.passage_ids[text] for text in passages]
        padded = [pad_ids(ids, 0, (len(pairs), length)) for ids, length in zip(sides, lengths, strict=True)]
        targets = self.targets[queries], self.targets[passages]
        ranked = self.targets[np.random.default_rng(pairs).integers(len(self.targets), size=RANKED)]
        return Batch(*padded[0], *padded[1], *targets, self.natural[pairs], ranked)

    def batches(self, seed: int) -> Iterator[Callable[[], Batch]]:
        """Yield functions that make batches, without end: pairs of similar lengths, each pair once an epoch."""

        def padded(ids: list[int]) -> int:
            return next(length for length in LENGTHS if len(ids) <= length)

        shapes = [(padded(self.query_ids[query]), padded(self.passage_ids[passage])) for query, passage in self.pairs]
        waiting: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for epoch in itertools.count():
            for pair in np.random.default_rng((seed, epoch)).permutation(len(self.pairs)):
                full = waiting[shapes[pair]]
                full.append(pair)
                if len(full) == BATCH_TOKENS // sum(shapes[pair]):
                    yield partial(self.batch, waiting.pop(shapes[pair]), *shapes[pair])


def loss(params: BertParams, batch: Batch, config: BertConfig) -> tuple[jax.Array, jax.Array]:
    """Return the loss, and its part from distillation: 1 - cosine with the teacher's vectors."""
    queries = jax_model.embed(params, batch.query_ids, batch.query_mask, config=config)  # [B, D]
    passages = jax_model.embed(params, batch.passage_ids, batch.passage_mask, config=config)  # [B, D]
    targets = batch.query_targets, batch.passage_targets
    distance = 1 - (jnp.vdot(queries, targets[0]) + jnp.vdot(passages, targets[1])) / (2 * len(queries))
    scores = queries @ passages.T / TEMPERATURE  # [B, B]
    missed = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(len(queries)))  # [B]
    contrast = jnp.vdot(missed, batch.natural) / jnp.maximum(batch.natural.sum(), 1)
    ranks = [jnp.concatenate(vectors) @ batch.ranked.T / TEMPERATURE for vectors in ((queries, passages), targets)]
    # How the softmax over the ranked texts departs from the teacher's.
    ranking = optax.losses.kl_divergence(jax.nn.log_softmax(ranks[0]), jax.nn.softmax(ranks[1])).mean()
    return distance + CONTRAST * contrast + RANKING * ranking, distance


State = tuple[BertParams, Any]  # the weights, with layers stacked, and the optimizer's state


def write_state(path: Path, state: State, lines: list[dict[str, float]], settings: str) -> None:
    """Keep everything that a run with these settings needs to go on."""
    arrays = {str(index): np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
    with written_whole(path) as file:
        file.write(save(arrays, {"lines": json.dumps(lines), "settings": settings}))


def read_state(path: Path, first: State, settings: str) -> tuple[State, list[dict[str, float]]]:
    """Read what `write_state` has written; if there is no file, return the `first` state."""
    if not path.exists():
        return first, []
    with safe_open(path, "np") as file:
        if file.metadata()["settings"] != settings:
            raise ValueError(f"{path}: belongs to a run with other settings or texts; remove it, or give a new folder")
        arrays = [jnp.asarray(file.get_tensor(str(index))) for index in range(len(file.keys()))]
        return jax.tree.unflatten(jax.tree.structure(first), arrays), json.loads(file.metadata()["lines"])


def main_directions(vectors: np.ndarray, width: int) -> np.ndarray:
    """Return the directions that keep most of the vectors' inner products. [n, D] -> [D, width]."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)  # of ascending weight
    return directions[:, : -width - 1 : -1]


def held_out_accuracy(model: e5ref.E5, pairs: list[Pair]) -> float:
    """Return the share of queries whose own passage is the nearest of all."""
    queries = model.encode_query([pair.query for pair in pairs])
    passages = model.encode_document([pair.passage for pair in pairs])
    return float(np.mean(np.argmax(queries @ passages.T, axis=1) == np.arange(len(pairs))))


def dev_scores(folder: Path, held_out: list[Pair], sts: Path | None, beir: Path | None) -> dict[str, float]:
    """Evaluate the checkpoint in a folder on held-out pairs and, if given, on `sts` and `beir`."""
    model = e5ref.load(folder, truncation="allow")
    scores = {"held_out": held_out_accuracy(model, held_out)}
    if sts is not None:
        scores["spearman"] = evaluate_sts(model, sts)[0]["scores"]["spearman"]
    if beir is not None:
        scores["ndcg@10"] = evaluate_retrieval(model, beir)[0]["scores"]["ndcg@10"]
    return scores


def write_checkpoint(folder: Path, params: BertParams, config: BertConfig, tokenizer: Tokenizer) -> None:
    """Write the files that e5ref, transformers and sentence-transformers read, with weights in float16."""
    names = leaves(build_params(lambda name, shape: name, config))
    layers = [jax.tree.map(itemgetter(index), params.layers) for index in range(config.num_hidden_layers)]
    params = params._replace(layers=tuple(layers))
    weights = {name: np.asarray(leaf, np.float16) for name, leaf in zip(names, leaves(params), strict=True)}
    files: dict[str, Any] = {
        # transformers computes in "dtype", whatever the file holds.
        "config.json": asdict(config) | {"architectures": ["BertModel"], "hidden_act": "gelu", "dtype": "float32"},
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "model_max_length": config.max_position_embeddings,
        },
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(
                [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
            )
        ],
        "sentence_bert_config.json": {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True},
        # sentence-transformers' `encode_document` looks for the name "document" first.
        "config_sentence_transformers.json": {
            "prompts": E5_PROMPTS | {"document": E5_PROMPTS["passage"]},
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / name) as file:
            file.write(f"{json.dumps(content, indent=2)}\n".encode())
    with written_whole(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str().encode())
    with written_whole(folder / "model.safetensors") as file:
        file.write(save(weights, {"format": "pt"}))


def train(
    output: Path,
    data: Path,
    teacher: e5ref.E5,
    *,
    config: BertConfig = CONFIG,
    steps: int,
    seed: int = 0,
    score_every: int = 500,
    sts: Path | None = None,
    beir: Path | None = None,
) -> list[dict[str, float]]:
    """Train a checkpoint, or go on where an earlier run with the same settings stopped.

    Args:
        output: the folder to write: the checkpoint, `training.jsonl`, and `work/` with intermediate files.
        data: the folder of the texts.
        teacher: the model to learn from; it must cut long texts.
        config: the sizes. The vocabulary becomes smaller if the texts do not fill it.
        steps: the number of batches to train on.
        seed: the seed of everything random.
        score_every: the number of steps after which the checkpoint is written and scored.
        sts: pairs of sentences for scores, as in `e5ref eval sts`; they are not trained on.
        beir: a folder for scores, as in `e5ref eval retrieval`; it is not trained on.

    Returns:
        The lines of `training.jsonl`: step, loss, distance from the teacher, and the scores.

    Raises:
        ValueError: there are too few pairs.
    """
    work = output / "work"
    work.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(data, seed)
    held_out = [pair for pair in pairs if pair.kind in ("heading", "sentence", "definition", "question")]
    held_out = held_out[: min(HELD_OUT, len(held_out) // 5)]
    if len(held_out) < 2:
        raise ValueError(f"{data}: holds {len(pairs)} pairs; it must have openstax.jsonl.gz or another file of texts")
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.query, pair.passage)))
    asked = texts_sha256(teacher, texts)
    targets = teach(teacher, texts, asked, work / "teacher.safetensors").astype(np.float32)  # [texts, the teacher's D]
    unseen = {text for pair in held_out for text in (pair.query, pair.passage)}
    pairs = [pair for pair in pairs if pair.query not in unseen and pair.passage not in unseen]

    known = teacher.tokenizer.token_strings(range(teacher.checkpoint.config.vocab_size))
    tokens = choose_tokens(known, texts, config.vocab_size)
    tokenizer = bert_tokenizer({token: index for index, token in enumerate(tokens)})
    config = replace(config, vocab_size=len(tokens))
    directions = main_directions(targets, config.hidden_size)
    targets = targets @ directions  # [texts, D]
    params = first_params(config, teacher.encode([token.removeprefix("##") for token in tokens]) @ directions, seed)

    ids = []
    tokenizer.enable_truncation(config.max_position_embeddings)
    for prompt in E5_PROMPTS.values():
        ids.append([encoding.ids for encoding in tokenizer.encode_batch([prompt + text for text in texts])])
    tokenizer.no_truncation()
    place = {text: index for index, text in enumerate(texts)}
    examples = Data(
        *ids,
        targets / np.linalg.norm(targets, axis=1, keepdims=True),
        np.array([[place[pair.query], place[pair.passage]] for pair in pairs]),
        np.array([pair.kind != "changed" for pair in pairs], np.float32),
    )

    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, round(WARM_UP * steps), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1), optax.adamw(schedule, weight_decay=0.01))
    params = jax_model.stack_layers(params)
    state = params, optimizer.init(params)
    # A run goes on where it stopped only if these are the same.
    settings = json.dumps([asdict(config), steps, seed, score_every, asked])
    state, lines = read_state(work / "state.safetensors", state, settings)

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, batch: Batch) -> tuple[State, jax.Array]:
        params, momenta = state
        (total, distance), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, config)
        changes, momenta = optimizer.update(gradients, momenta, params)
        return (optax.apply_updates(params, changes), momenta), jnp.stack([total, distance])

    def keep(step: int) -> None:
        """Write the checkpoint, score it, and print a line of the loss curve."""
        write_checkpoint(output, state[0], config, tokenizer)
        numbers = dict(zip(("loss", "distance"), np.mean(losses, axis=0).tolist(), strict=True)) if losses else {}
        lines.append({"step": step, **numbers, **dev_scores(output, held_out, sts, beir)})
        losses.clear()
        write_state(work / "state.safetensors", state, lines, settings)
        curve = "█" * round(40 * numbers.get("loss", 0))
        bar.write("  ".join([*(f"{name} {value:.4g}" for name, value in lines[-1].items()), curve]))

    losses: list[jax.Array] = []
    done = int(lines[-1]["step"]) if lines else 0
    with progress_bar(steps, "training", "step", delay=0, initial=done) as bar:
        if not lines:
            keep(0)
        for step, batch in enumerate(itertools.islice(examples.batches(seed), done, steps), done + 1):
            state, numbers = update(state, batch())
            losses.append(numbers)
            bar.update()
            if step % score_every == 0 or step == steps:
                keep(step)
    with written_whole(output / "training.jsonl") as file:
        file.writelines(f"{json.dumps(line)}\n".encode() for line in lines)
    return lines


@click.command()
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="The texts.")
@click.option("--teacher", required=True, help="A hub name or folder of the model to learn from.")
@click.option("--steps", default=5000, show_default=True, help="Batches to train on.")
@click.option("--seed", default=0, show_default=True, help="The seed of everything random.")
@click.option("--score-every", default=1000, show_default=True, help="Steps between two scorings.")
@click.option("--sts", type=click.Path(path_type=Path, exists=True), help="Pairs of sentences to score it on.")
@click.option("--beir", type=click.Path(path_type=Path, exists=True), help="A folder in BEIR's layout to score it on.")
def main(output: Path, data: Path, teacher: str, **options: Any) -> None:
    """Train e5ref-nano into the folder OUTPUT; run it again to go on where it stopped."""
    try:
        train(output, data, e5ref.load(teacher, max_length=256, truncation="allow"), **options)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
