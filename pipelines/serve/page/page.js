// The page: it knows what the model is from /v1/model, and shows what that says. Nothing is loaded from elsewhere.

const $ = (id) => document.getElementById(id);
const draw = $("draw"), upload = $("upload"), question = $("question");
let model, token = "";
const pins = []; // { point, truncation, role, uri, pixels, chosen }

function element(tag, props = {}, ...children) {
  const made = Object.assign(document.createElement(tag), props);
  made.append(...children);
  return made;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

/** The answer of the service; an Error with its line where it refuses. */
async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) $("token-form").hidden = false;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.error ?? `${answer.status} ${answer.statusText}`);
}

const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Run what a person asked for, one thing at a time, and say how it went. */
async function doing(what, work) {
  say(`${what} …`);
  document.body.ariaBusy = "true";
  const buttons = [...document.querySelectorAll("form button, #interpolate, #walk, #nearest, .near")].filter((button) => !button.disabled);
  buttons.forEach((button) => (button.disabled = true));
  try {
    say((await work()) ?? "");
  } catch (error) {
    say(error.message, true);
  } finally {
    buttons.forEach((button) => (button.disabled = false));
    document.body.ariaBusy = "false";
    offer();
  }
}

// -- pictures ------------------------------------------------------------------------------------------------------

/** Pictures of NumPy's array file, uint8 [N, H, W, C], as ImageData. */
function pictures(buffer) {
  const view = new DataView(buffer);
  const long = view.getUint8(6) > 1;
  const start = long ? 12 : 10;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, start, length));
  const [n, height, width, channels] = header.match(/'shape': \(([^)]*)\)/)[1].split(",").map(Number);
  if (!header.includes("'|u1'") || !channels) throw new Error(`not pictures: ${header}`);
  const bytes = new Uint8Array(buffer, start + length);
  return Array.from({ length: n }, (_, i) => {
    const made = new ImageData(width, height);
    for (let p = 0; p < width * height; p++) {
      const from = (i * width * height + p) * channels;
      for (let c = 0; c < 3; c++) made.data[4 * p + c] = bytes[from + (channels === 1 ? 0 : c)];
      made.data[4 * p + 3] = 255;
    }
    return made;
  });
}

function canvas(pixels) {
  const made = element("canvas", { width: pixels.width, height: pixels.height });
  made.getContext("2d").putImageData(pixels, 0, 0);
  return made;
}

// -- drawing -------------------------------------------------------------------------------------------------------

function asked() {
  const fields = draw.elements;
  const body = { n: fields.n.valueAsNumber, seed: fields.seed.valueAsNumber };
  if (fields.label.value) body.label = fields.label.value;
  if (fields.truncate.checked) body.truncation = fields.truncation.valueAsNumber;
  const attributes = [...$("attributes").querySelectorAll("input")].filter((input) => input.value !== "");
  if (attributes.length) body.attributes = Object.fromEntries(attributes.map((i) => [i.name, i.valueAsNumber]));
  const where = fields.where.value.split(",").map((one) => one.trim()).filter(Boolean);
  if (where.length) body.where = where;
  return body;
}

async function drawSamples() {
  const body = asked();
  const roles = draw.elements.compare.checked ? ["served", "challenger"] : ["served"];
  const shown = [];
  for (const role of roles) shown.push(await samplesOf(role, body));
  $("results").replaceChildren(...shown.map(([, section]) => section));
  showCode(body, shown[0][0]);
  return `${body.n} samples, seed ${body.seed}`;
}

async function samplesOf(role, body) {
  const format = { pictures: "npy", rows: "json", texts: "json" }[model.shown_as] ?? "png";
  const answer = await post("v1/samples", { ...body, model: role, format });
  const uri = decodeURIComponent(answer.headers.get("Ganlib-Model"));
  const section = element("section", {}, element("h2", { textContent: uri }));
  if (format === "npy") {
    const list = element("ul", { className: "grid" });
    pictures(await answer.arrayBuffer()).forEach((pixels, index) => list.append(tile(role, uri, body, index, pixels)));
    section.append(list);
  } else if (format === "json") {
    const { samples } = await answer.json();
    const near = model.neighbours && ((index) => nearButton(pointOf(body, index), body.truncation, role));
    section.append(scrolling(model.shown_as === "rows" ? table(samples, near) : lines(samples, near)));
  } else {
    section.append(await picture(answer));
  }
  return [uri, section];
}

function pointOf(body, index) {
  const label = body.label ?? model.classes[index % model.classes.length];
  return { seed: body.seed, index, ...(label !== undefined && { label }), ...(body.attributes && { attributes: body.attributes }) };
}

function tile(role, uri, body, index, pixels) {
  const point = pointOf(body, index), label = point.label;
  const key = JSON.stringify([uri, point, body.truncation]);
  const name = label ?? `#${index}`;
  const button = element("button", { type: "button", className: "tile", title: "Pin" }, canvas(pixels), name);
  button.setAttribute("aria-label", `Pin sample ${index}${label === undefined ? "" : `, class ${label}`}`);
  const press = () => button.setAttribute("aria-pressed", String(pins.some((pin) => pin.key === key)));
  button.addEventListener("click", () => {
    const at = pins.findIndex((pin) => pin.key === key);
    if (at < 0) pins.push({ key, point, truncation: body.truncation, role, uri, pixels, name, chosen: pins.length < 2 });
    else pins.splice(at, 1);
    press();
    showPins();
  });
  press();
  return element("li", {}, button);
}

const scrolling = (content) => element("div", { className: "scroll", tabIndex: 0 }, content);

/** `near(index)`, if any, makes what stands at the end of a row. */
function table(rows, near) {
  const names = Object.keys(rows[0] ?? {});
  const numbers = new Set(names.filter((name) => rows.every((row) => row[name] === null || typeof row[name] === "number")));
  const side = (name) => (numbers.has(name) ? "number" : "");
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col", className: side(name), textContent: name })));
  if (near) head.append(element("td"));
  const body = rows.map((row, index) => element("tr", {},
    ...names.map((name) => element("td", { className: side(name), textContent: row[name] ?? "" })),
    ...(near ? [element("td", {}, near(index))] : [])));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

const lines = (texts, near) =>
  element("ol", { className: "lines" }, ...texts.map((text, index) => element("li", {}, text, ...(near ? [" ", near(index)] : []))));

async function picture(answer) {
  const image = element("img", { alt: "What the model made", src: URL.createObjectURL(await answer.blob()) });
  await image.decode();
  URL.revokeObjectURL(image.src);
  return element("div", { className: "single" }, image);
}

// -- favourites ----------------------------------------------------------------------------------------------------

function showPins() {
  $("favourites").hidden = !pins.length;
  $("pins").replaceChildren(...pins.map((pin) => {
    const button = element("button", { type: "button", className: "tile" }, canvas(pin.pixels), `${pin.name}, seed ${pin.point.seed}`);
    button.setAttribute("aria-pressed", String(pin.chosen));
    button.setAttribute("aria-label", `Choose favourite ${pin.name}, sample ${pin.point.index} of seed ${pin.point.seed}`);
    button.addEventListener("click", () => {
      pin.chosen = !pin.chosen;
      button.setAttribute("aria-pressed", String(pin.chosen));
      offer();
    });
    return element("li", {}, button);
  }));
  offer();
}

const chosen = () => pins.filter((pin) => pin.chosen);

function offer() {
  const busy = document.body.ariaBusy === "true";
  $("interpolate").disabled = busy || chosen().length !== 2;
  $("walk").disabled = $("nearest").disabled = busy || chosen().length !== 1;
}

async function interpolate() {
  const [start, end] = chosen();
  const body = { start: start.point, end: end.point, steps: $("steps").valueAsNumber, model: start.role };
  if (start.truncation) body.truncation = start.truncation;
  return showPath("v1/interpolations", body);
}

async function walk() {
  const [{ point, role }] = chosen();
  const direction = $("direction").valueAsNumber - 1;
  return showPath("v1/walks", { point, direction, steps: $("steps").valueAsNumber, model: role });
}

async function showPath(path, body) {
  const answer = await post(path, { ...body, format: "npy" });
  const frames = element("div", { className: "frames", tabIndex: 0 }, ...pictures(await answer.arrayBuffer()).map(canvas));
  $("path").replaceChildren(frames);
  showSnippets({ curl: curl(path, body) });
  return `${body.steps} steps`;
}

// -- training examples ---------------------------------------------------------------------------------------------

function nearButton(point, truncation, role) {
  const button = element("button", { type: "button", className: "near", textContent: "Nearest" });
  button.setAttribute("aria-label", `Nearest training examples of sample ${point.index}`);
  button.addEventListener("click", () => doing("Looking", () => showNeighbours({ point, truncation, role })));
  return button;
}

async function showNeighbours({ point, truncation, role }) {
  const body = { point, model: role, ...(truncation && { truncation }) };
  const format = model.shown_as === "pictures" ? "npy" : "json";
  const answer = await post("v1/neighbours", { ...body, format });
  const distances = answer.headers.get("Ganlib-Distances").split(", ");
  const section = $("neighbours");
  let shown;
  if (format === "npy") {
    const tiles = pictures(await answer.arrayBuffer()).map((pixels, i) => element("li", {}, element("div", { className: "tile" }, canvas(pixels), distances[i])));
    shown = element("ul", { className: "grid" }, ...tiles);
  } else {
    const { samples } = await answer.json();
    const rows = samples.map((sample, i) => ({ distance: Number(distances[i]), ...(typeof sample === "object" ? sample : { sample }) }));
    shown = scrolling(table(rows));
  }
  section.querySelector("p").textContent = `Of sample ${point.index}, seed ${point.seed}; distances in features, 0: a copy.`;
  section.querySelector("div").replaceChildren(shown);
  section.hidden = false;
  section.scrollIntoView({ block: "nearest" });
  showSnippets({ curl: curl("v1/neighbours", body) });
  return `nearest training examples of sample ${point.index}`;
}

// -- answers -------------------------------------------------------------------------------------------------------

async function askModel() {
  const by = model.asked_by, field = question.elements[by];
  const likeSamples = Object.keys(model.answers).filter((name) => model.answers[name] === "sample");
  const format = model.shown_as === "pictures" ? "png" : "json";
  let about, send;
  if (by === "file") {
    const file = field.files[0];
    about = [file.name];
    send = (query) => ask(`v1/answers/file?${new URLSearchParams(query)}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
  } else {
    const examples = by === "lines" ? field.value.split("\n").filter((line) => line.trim()) : JSON.parse(field.value);
    about = by === "lines" ? examples : examples.map((_, i) => `#${i}`);
    send = (query) => post("v1/answers", { examples, ...query });
  }
  const answer = await send({});
  const uri = decodeURIComponent(answer.headers.get("Ganlib-Model"));
  const { answers } = await answer.json();
  const rows = about.map((example, i) => ({ example, ...Object.fromEntries(Object.entries(answers).map(([name, values]) => [name, values[i]])) }));
  const sections = [element("section", {}, element("h2", { textContent: uri }), scrolling(table(rows)))];
  for (const name of likeSamples) {
    const made = await send({ answer: name, format });
    sections.push(element("section", {}, element("h2", { textContent: name }), format === "png" ? await picture(made) : scrolling(table((await made.json()).samples))));
  }
  if (by === "file") {
    const source = element("img", { alt: "The file", src: URL.createObjectURL(field.files[0]) });
    sections.splice(1, 0, element("section", {}, element("h2", { textContent: about[0] }), element("div", { className: "single" }, source)));
  }
  $("results").replaceChildren(...sections);
  return `asked about ${about.length === 1 ? about[0] : `${about.length} examples`}`;
}

// -- files ---------------------------------------------------------------------------------------------------------

async function make() {
  const file = upload.elements.file.files[0];
  const into = model.classes.length ? `&label=${encodeURIComponent(upload.elements.label.value)}` : "";
  const changes = [...$("changes").querySelectorAll("input")].map((i) => `&attribute=${encodeURIComponent(`${i.name}=${i.value}`)}`);
  const path = `v1/translations?seed=${upload.elements.seed.valueAsNumber}${into}${changes.join("")}`;
  if (file.size > model.limits.body_bytes) throw new Error(`${file.name}: at most ${model.limits.body_bytes} bytes`);
  const answer = await ask(`${path}&format=png`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file });
  const uri = decodeURIComponent(answer.headers.get("Ganlib-Model"));
  const source = element("img", { alt: "The file", src: URL.createObjectURL(file) });
  const given = element("section", {}, element("h2", { textContent: file.name }), element("div", { className: "single" }, source));
  const made = element("section", {}, element("h2", { textContent: uri }), await picture(answer));
  $("results").replaceChildren(given, made);
  showSnippets({ curl: `curl ${authorization()}--data-binary @'${file.name.replaceAll("'", "'\\''")}' -o made.png '${new URL(path, location)}&format=png'` });
  return `made of ${file.name}`;
}

// -- code ----------------------------------------------------------------------------------------------------------

const authorization = () => (token ? '-H "Authorization: Bearer $GANLIB_API_TOKEN" ' : "");

function curl(path, body) {
  const file = `made.${model.formats[0]}`;
  const json = JSON.stringify(body).replaceAll("'", "'\\''");
  return `curl ${authorization()}--json '${json}' -o ${file} ${new URL(path, location)}`;
}

/** Python's way to write a JSON value. */
const python = (value) => JSON.stringify(value, null, 1).replace(/\n\s*/g, " ").replace(/([[{]) | ([\]}])/g, "$1$2");

function showCode(body, uri) {
  const params = { ...body };
  if (params.label !== undefined && model.classes.every((name) => /^(0|[1-9]\d*)$/.test(name))) params.label = Number(params.label);
  if (params.attributes) params.attributes = model.attributes.map((name) => params.attributes[name]);
  const code = `import mlflow  # MLFLOW_TRACKING_URI in the environment names the store

model = mlflow.pyfunc.load_model("${uri}")
samples = model.predict(None, params=${python(params)})`;
  showSnippets({ ...(uri.startsWith("models:/") && { Python: code }), curl: curl("v1/samples", body) });
}

function showSnippets(snippets) {
  $("code").hidden = false;
  $("snippets").replaceChildren(...Object.entries(snippets).map(([name, text]) => {
    const copy = element("button", { type: "button", textContent: "Copy" });
    copy.setAttribute("aria-label", `Copy ${name}`);
    const code = element("pre", { tabIndex: 0, textContent: text });
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        say(`${name} copied`);
      } catch { // without TLS browsers have a clipboard on loopback alone
        getSelection().selectAllChildren(code);
        say(`${name} selected: copy it by the keyboard`);
      }
    });
    return element("figure", {}, element("figcaption", {}, name, copy), code);
  }));
}

/** A field for an attribute. */
const number = (name, more = {}) =>
  element("label", { textContent: name }, element("input", { name, type: "number", step: "any", ...more }));

// -- start ---------------------------------------------------------------------------------------------------------

async function start() {
  model = await (await ask("v1/model")).json();
  $("token-form").hidden = true;
  const about = [model.model, model.kind, model.classes.length && `${model.classes.length} classes`, model.challenger && `challenger ${model.challenger}`];
  $("about").textContent = about.filter(Boolean).join(" · ");
  const translates = model.given.length > 0;
  upload.hidden = !translates;
  draw.hidden = translates;
  for (const part of document.querySelectorAll("form [data-if]")) {
    const has = model[part.dataset.if];
    part.hidden = Array.isArray(has) ? !has.length : !has;
  }
  $("nearest").hidden = !model.neighbours;
  const byHand = model.asked_by !== "json" || model.shown_as !== "pictures"; // nobody types pixels
  question.hidden = !Object.keys(model.answers).length || !byHand;
  for (const part of question.querySelectorAll("[data-by]")) {
    part.hidden = part.dataset.by !== model.asked_by;
    part.querySelector("input, textarea").required = !part.hidden;
  }
  const fields = draw.elements;
  fields.n.max = model.limits.samples;
  fields.n.value = Math.min(model.limits.samples, model.classes.length > 1 && model.classes.length <= 16 ? 2 * model.classes.length : 20);
  for (const { elements } of [draw, upload]) {
    elements.label.append(...model.classes.map((name) => element("option", { value: name, textContent: name })));
  }
  $("attributes").append(...model.attributes.map((name) => number(name)));
  $("changes").append(...model.attributes.map((name) => number(name, { value: "0", required: true })));
  say("");
  if (!translates) await doing("Drawing", drawSamples);
}

draw.addEventListener("submit", (event) => (event.preventDefault(), doing("Drawing", drawSamples)));
upload.addEventListener("submit", (event) => (event.preventDefault(), doing("Working", make)));
question.addEventListener("submit", (event) => (event.preventDefault(), doing("Asking", askModel)));
draw.elements.truncate.addEventListener("change", () => (draw.elements.truncation.disabled = !draw.elements.truncate.checked));
draw.elements.truncation.addEventListener("input", () => (draw.querySelector("output").value = draw.elements.truncation.value));
$("next").addEventListener("click", () => {
  draw.elements.seed.valueAsNumber += 1;
  draw.requestSubmit();
});
$("interpolate").addEventListener("click", () => doing("Interpolating", interpolate));
$("walk").addEventListener("click", () => doing("Walking", walk));
$("nearest").addEventListener("click", () => doing("Looking", () => showNeighbours(chosen()[0])));
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  start().catch((error) => say(error.message, true));
});
start().catch((error) => say(error.message, true));
