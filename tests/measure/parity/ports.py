"""Ports of BERT that no extra of e5ref installs: CTranslate2, OpenVINO and transformers.js, for `false_alarms`.

`pip install ctranslate2 openvino` brings two. For the third, `npm install @huggingface/transformers` in a folder, and
name the folder in the environment variable E5REF_NODE.
"""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

import e5ref
from e5ref.bench.contenders import load_network
from e5ref.bench.prepare import export_graph
from e5ref.operations import Ids
from e5ref.parity.runs.runners import Points, Runner, own_tokenize

Load = Callable[[], Runner]

# Reads a line of ids, [B, T], and of masks, and writes the numbers of the last states to a file.
SCRIPT = """
import { env, AutoModel, Tensor } from "@huggingface/transformers";
import { writeFileSync } from "node:fs";
import { createInterface } from "node:readline";

env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const model = await AutoModel.from_pretrained("model", { dtype: "fp32" });
for await (const line of createInterface({ input: process.stdin })) {
  const given = JSON.parse(line);
  const shape = [given.ids.length, given.ids[0].length];
  const tensor = (rows) => new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), shape);
  const ids = tensor(given.ids);
  const types = tensor(given.ids.map((row) => row.map(() => 0)));
  const output = await model({ input_ids: ids, attention_mask: tensor(given.mask), token_type_ids: types });
  writeFileSync(given.file, Buffer.from(output.last_hidden_state.data.buffer));
  console.log("written");
}
"""


def ports(folder: Path, names: list[str], place: Path) -> Iterator[tuple[str, str, Load, int]]:
    """Yield those that are installed, as `false_alarms.candidates` does; `place` is an empty folder for their files."""
    encoder = e5ref.load(folder)
    if importlib.util.find_spec("ctranslate2"):
        yield "CTranslate2", "float32", partial(ctranslate2_runner, encoder, place), 1
    if importlib.util.find_spec("openvino"):
        for dtype in ("float32", "bfloat16"):
            yield "OpenVINO", dtype, partial(openvino_runner, encoder, names, place / "model.onnx", dtype), 1
    if node := os.environ.get("E5REF_NODE"):
        yield "transformers.js", "float32", partial(node_runner, encoder, Path(node), place), 1


def pooled(states: np.ndarray, attention_mask: Ids) -> Points:
    """What a port's user does with last states, [B, T, D]: the average of the real tokens, of unit L2 norm."""
    states = np.where(attention_mask[..., None] == 1, states, np.float32(0))
    vectors = states.sum(axis=1) / attention_mask.sum(axis=1, dtype=np.float32)[:, None]
    normalized = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return {"last_hidden_state": states, "pooled": vectors, "normalized": normalized}


def ctranslate2_runner(encoder: e5ref.E5, place: Path) -> Runner:
    """Run CTranslate2's encoder, which gives the last states."""
    import ctranslate2

    converted = place / "ctranslate2"
    if not converted.exists():
        source = shutil.copytree(encoder.checkpoint.folder, place / "source")
        config = json.loads((source / "config.json").read_text())
        # The converter asks for it; transformers 5 has no default for it any more.
        (source / "config.json").write_text(json.dumps({"position_embedding_type": "absolute"} | config))
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(converted))
    model = ctranslate2.Encoder(str(converted), compute_type="float32", intra_threads=1)

    def run(input_ids: Ids, attention_mask: Ids) -> Points:
        rows = [ids[mask == 1].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        states = np.array(model.forward_batch(rows).last_hidden_state)
        padded = np.zeros((*input_ids.shape, states.shape[2]), np.float32)
        padded[:, : states.shape[1]] = states
        return pooled(padded, attention_mask)

    return Runner(run, own_tokenize(encoder), "float32", facts={"backend": "CTranslate2"})


def openvino_runner(encoder: e5ref.E5, names: list[str], graph: Path, dtype: str) -> Runner:
    """Run the graph that `false_alarms.write_graph` writes, with all of its points."""
    import openvino

    core = openvino.Core()
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    model = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def run(input_ids: Ids, attention_mask: Ids) -> Points:
        found = model({"input_ids": input_ids, "attention_mask": attention_mask})
        return {name: found[name] for name in names}

    return Runner(run, own_tokenize(encoder), dtype, facts={"backend": "OpenVINO"})


def node_runner(encoder: e5ref.E5, node: Path, place: Path) -> Runner:
    """Run transformers.js in Node, with a graph of the whole network; it gives the last states."""
    import torch

    class Network(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    folder = place / "model"
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        source = encoder.checkpoint.folder / name
        (folder / name).write_text(source.read_text() if source.exists() else "{}")
    module = Network()
    module.network = load_network(encoder.checkpoint.folder, "eager", "float32")
    export_graph(module, ["last_hidden_state"], folder / "onnx" / "model.onnx")
    script = node / "e5ref-false-alarms.mjs"  # beside node_modules, where imports are looked for
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        ["node", script.name, str(place)], cwd=node, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(input_ids: Ids, attention_mask: Ids) -> Points:
        file = place / "states.bin"
        given = {"ids": input_ids.tolist(), "mask": attention_mask.tolist(), "file": str(file)}
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "written\n":
            raise RuntimeError("transformers.js has stopped; see what it printed")
        states = np.fromfile(file, np.float32).reshape(*input_ids.shape, -1)
        return pooled(states, attention_mask)

    return Runner(run, own_tokenize(encoder), "float32", facts={"backend": "transformers.js"})
