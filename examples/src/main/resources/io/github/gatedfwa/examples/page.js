"use strict";

const element = (id) => document.getElementById(id);

let heads = []; // [{layer, head}], in the order of a cell's figures
let buttons = []; // one for each head
let chosen = 0; // index of the head that the text shows
let cells = []; // characters with their gates: {span, forgotten: percent for each head}
let sums = []; // of the percentages, for each head
let running = null; // aborts the completion that runs

/** From white over orange to dark red, as GateMap draws it. */
function color(percent) {
  const s = Math.min(1, Math.max(0, percent / 100));
  const part = (x) => Math.round(255 * Math.max(0, x));
  return `rgb(${part(1 - 0.5 * s * s)}, ${part(1 - 0.85 * s)}, ${part(1 - 1.3 * s)})`;
}

function paint(target, percent) {
  target.style.background = color(percent);
  target.style.color = percent > 60 ? "white" : "black";
}

function paintCell(cell) {
  paint(cell.span, cell.forgotten[chosen]);
  cell.span.title = `${cell.forgotten[chosen]} %`;
}

function paintHeads() {
  buttons.forEach((button, i) => {
    const mean = cells.length ? sums[i] / cells.length : 0;
    paint(button, mean);
    button.textContent = cells.length ? Math.round(mean) : "";
    button.setAttribute("aria-pressed", String(i === chosen));
  });
}

/** A row of buttons for each layer. */
function showHeads() {
  let row = null;
  heads.forEach(({ layer, head }, i) => {
    if (head === 0) {
      row = element("heads").insertRow();
      const name = document.createElement("th");
      name.textContent = layer;
      row.append(name);
    }
    const button = document.createElement("button");
    button.title = `${layer}, head ${head}`;
    button.onclick = () => {
      chosen = i;
      cells.forEach(paintCell);
      paintHeads();
    };
    row.insertCell().append(button);
    buttons.push(button);
  });
}

function clear() {
  cells = [];
  sums = heads.map(() => 0);
  element("text").replaceChildren();
  paintHeads();
}

/** The text's last node: what has come and has no gates yet. */
function pending() {
  const last = element("text").lastChild;
  if (last && last.nodeType === Node.TEXT_NODE) {
    return last;
  }
  const node = document.createTextNode("");
  element("text").append(node);
  return node;
}

/** What comes from the model is data: it becomes text nodes, never markup. */
function take(event) {
  if (event.text !== undefined) {
    pending().data += event.text;
  }
  if (event.gates) {
    // The gates are those of the text's end; before it may stand the start of a long prompt.
    const plain = pending();
    const covered = event.gates.reduce((sum, { c }) => sum + c.length, 0);
    plain.data = plain.data.slice(0, plain.data.length - covered);
    for (const { c, f } of event.gates) {
      const span = document.createElement("span");
      span.textContent = c;
      const cell = { span, forgotten: f };
      paintCell(cell);
      cells.push(cell);
      f.forEach((percent, i) => (sums[i] += percent));
      element("text").append(span);
    }
    paintHeads();
  }
  if (event.end) {
    element("status").textContent =
      `${event.bytes} bytes in ${event.seconds.toFixed(1)} s; ended by ${event.end}`;
  }
}

async function complete() {
  clear();
  pending().data = element("prompt").value;
  element("status").textContent = "writing …";
  const response = await fetch("complete", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      prompt: element("prompt").value,
      temperature: Number(element("temperature").value),
      length: Number(element("length").value),
      seed: Number(element("seed").value),
    }),
    signal: running.signal,
  });
  if (!response.ok) {
    throw new Error((await response.json()).error);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach((line) => take(JSON.parse(line)));
  }
}

element("form").onsubmit = async (submit) => {
  submit.preventDefault();
  running = new AbortController();
  element("start").disabled = true;
  element("stop").disabled = false;
  try {
    await complete();
  } catch (error) {
    element("status").textContent = error.name === "AbortError" ? "stopped" : error.message;
  } finally {
    element("start").disabled = false;
    element("stop").disabled = true;
  }
};

element("stop").onclick = () => running.abort();

(async () => {
  const steps = Array.from({ length: 11 }, (_, i) => color(10 * i));
  element("scale").style.background = `linear-gradient(to right, ${steps.join(", ")})`;
  const model = await (await fetch("model")).json();
  heads = model.heads;
  element("model").textContent = model.name;
  for (const field of ["prompt", "temperature", "length", "seed"]) {
    element(field).value = model[field];
  }
  showHeads();
  clear();
})();
