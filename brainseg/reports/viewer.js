"use strict";

// Okabe and Ito's palette for colour-blind readers: truth first, then the runs; classes in an order of their own.
const COLOURS = ["#f0e442", "#56b4e9", "#d55e00", "#cc79a7", "#009e73", "#e69f00", "#0072b2"];
const CLASS_COLOURS = ["#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2"];
const THUMB = 16; // pixels: the slider's, whose middle goes from half of it to the width less half of it
const ROLES = { test: "test patient", validation: "validation patient", train: "training patient", unknown: "role in training unknown" };
const ROW = 12; // pixels: of a mask in the strip below the slider

const by = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(by(id).textContent);
const make = (tag, text = "", name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

const index = parsed("index");
const sources = ["truth", ...index.runs];
const untold = index.patients.every((one) => one.voxels[0] === null); // scans that nobody has outlined: no truth to switch on
const orders = [
  ...index.runs.map((run, at) => [`Dice${index.runs.length > 1 ? ` of ${run}` : ""}, worst first`, (one) => one.dice[at] ?? 2]),
  ["name", (one) => one.name],
  ["volume, largest first", (one) => -volumeOf(one)],
];
const state = { order: 0, patient: -1, slice: 0, channel: -1, shown: sources.map(() => true), style: "outline", label: 0, low: 0, high: 255 };
let content = null; // of the patient that is open
let mosaic = null; // its decoded image, in one channel
let sorted = [];
const grey = document.createElement("canvas"); // a slice in its own pixels, windowed
const tint = document.createElement("canvas"); // a mask in the same pixels

const colour = (source) => COLOURS[source % COLOURS.length];
const classColour = (label) => CLASS_COLOURS[(label - 1) % CLASS_COLOURS.length];
const volumeOf = (one) => one.voxels.find((voxels) => voxels !== null) ?? 0;
const labels = () => index.classes.length ? index.classes.map((_, label) => label).slice(1) : [0]; // 0: any class
const unit = (one) => one.voxel_ml === null ? "voxels" : "ml";
const dice = (value) => value === null || value === undefined ? "–" : value.toFixed(3);

function volume(one, voxels) {
  if (voxels === null || voxels === undefined) return "–";
  const ml = voxels * one.voxel_ml;
  return one.voxel_ml === null ? voxels.toLocaleString("en") : ml.toFixed(ml < 10 ? 2 : 1);
}

// --- the list of patients

function listPatients() {
  const key = orders[state.order][1];
  sorted = index.patients.map((_, at) => at);
  sorted.sort((a, b) => {
    const [one, other] = [key(index.patients[a]), key(index.patients[b])];
    return one < other ? -1 : one > other ? 1 : a - b;
  });
  const shown = state.order < index.runs.length ? state.order : 0; // Dice of the run that they are sorted by, else of the first
  by("sort").value = state.order;
  by("patients").replaceChildren(...sorted.map((at) => {
    const one = index.patients[at];
    const button = make("button");
    button.type = "button";
    const further = [one.role, `${volume(one, volumeOf(one))} ${unit(one)}`].filter(Boolean).join(" · ");
    button.append(make("span", one.name, "name"), make("span", dice(one.dice[shown]), "dice"), make("span", further, "further"));
    button.setAttribute("aria-label", `${one.name}, Dice ${dice(one.dice[shown])}, ${further}`);
    button.addEventListener("click", () => open(at));
    button.dataset.patient = at;
    const item = make("li");
    item.append(button);
    return item;
  }));
  markCurrent();
}

function markCurrent() {
  for (const button of by("patients").querySelectorAll("button")) {
    const current = Number(button.dataset.patient) === state.patient;
    if (current) {
      button.setAttribute("aria-current", "true");
      const [box, own] = [by("patients").getBoundingClientRect(), button.getBoundingClientRect()];
      if (own.top < box.top || own.bottom > box.bottom) by("patients").scrollTop += own.top - box.top - box.height / 2;
    } else button.removeAttribute("aria-current");
  }
}

// --- one patient: parsed and decoded only when it is opened

function open(at, slice = index.patients[at].largest) {
  const one = index.patients[at];
  state.slice = clamp(slice, 0, one.slices - 1);
  if (at !== state.patient) {
    state.patient = at;
    content = parsed(`case-${at}`);
    by("patient").textContent = one.name;
    by("role").textContent = ROLES[one.role] ?? "";
    by("slice").max = one.slices - 1;
    if (state.channel < 0) state.channel = content.channels.findIndex((channel) => channel.name === "FLAIR"); // what truth was drawn on
    state.channel = clamp(state.channel, 0, content.channels.length - 1);
    listMasks();
    listChannels();
    markCurrent();
    showChannel(state.channel);
  }
  draw();
}

function step(by_) {
  const place = sorted.indexOf(state.patient) + by_;
  if (place >= 0 && place < sorted.length) open(sorted[place]);
}

function listMasks() {
  const one = index.patients[state.patient];
  by("unit").textContent = unit(one);
  by("masks").replaceChildren(...sources.map((name, source) => {
    const row = make("tr"), label = make("label"), box = make("input"), swatch = make("span", "", "swatch");
    Object.assign(box, { type: "checkbox", checked: state.shown[source], disabled: content.masks[source] === null });
    box.dataset.source = source;
    box.addEventListener("change", () => toggle(source, box.checked));
    swatch.style.background = colour(source);
    label.append(box, swatch, make("span", name));
    const cells = [make("td"), make("td"), make("td", source ? dice(one.dice[source - 1]) : ""), make("td", volume(one, one.voxels[source]))];
    cells[0].append(label);
    cells[1].append(source < 10 ? make("kbd", source ? String(source) : "T") : "");
    row.append(...cells);
    row.hidden = source === 0 && untold;
    return row;
  }));
}

function toggle(source, on = !state.shown[source]) {
  state.shown[source] = on;
  by("masks").querySelector(`[data-source="${source}"]`).checked = on;
  draw();
}

function listChannels() {
  by("channels").replaceChildren(...content.channels.map((channel, at) => {
    const label = make("label"), radio = Object.assign(make("input"), { type: "radio", name: "channel", checked: at === state.channel });
    radio.addEventListener("change", () => showChannel(at));
    label.append(radio, ` ${channel.name}`);
    return label;
  }));
}

async function showChannel(at) {
  state.channel = at;
  by("channels").querySelectorAll("input")[at].checked = true;
  resetWindow();
  const image = new Image();
  image.src = content.channels[at].image;
  mosaic = null; // what is still on the screen is the last patient's: blank it until this one is decoded
  const wanted = content;
  await image.decode();
  if (content !== wanted || state.channel !== at) return; // somebody was faster
  mosaic = image;
  draw();
}

function resetWindow() {
  [state.low, state.high] = [0, content.channels[state.channel].white];
  showWindow();
}

function setWindow(centre, width) {
  [centre, width] = [clamp(centre, 0, 255), clamp(width, 5, 255)];
  [state.low, state.high] = [centre - width / 2, centre + width / 2];
  showWindow();
  draw();
}

function showWindow() { // a lower centre is a brighter image, a narrower window one of more contrast
  by("brightness").value = 255 - (state.low + state.high) / 2;
  by("contrast").value = 255 - (state.high - state.low);
}

const moveWindow = (brighter, sharper) => setWindow((state.low + state.high) / 2 - brighter, state.high - state.low - sharper);

// --- drawing

function decoded(source, slice) {
  const text = content.masks[source]?.[slice];
  if (!text) return null;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const mask = new Uint8Array(content.height * content.width);
  const runs = new DataView(bytes.buffer);
  for (let at = 0, place = 0; at < bytes.length; at += 4) {
    const run = runs.getUint32(at, true);
    mask.fill(run & 255, place, place += run >>> 8);
  }
  return mask;
}

// The part of the slice that is shown, in its pixels: the head, or what lies around the masks with room to see.
function view() {
  const { width, height, head, box } = content;
  if (!by("zoom").checked) return { x: head[2], y: head[0], width: head[3] - head[2], height: head[1] - head[0] };
  const [top, bottom, left, right] = box;
  const part = clamp(1.6 * Math.max((bottom - top) / height, (right - left) / width), 0.25, 1);
  const [wide, high] = [part * width, part * height];
  return { x: clamp((left + right - wide) / 2, 0, width - wide), y: clamp((top + bottom - high) / 2, 0, height - high), width: wide, height: high };
}

function draw() {
  const canvas = by("image"), part = view(), one = index.patients[state.patient];
  const above = by("stage").getBoundingClientRect().top + scrollY, below = 100 + sources.length * ROW; // slider and strip stay in sight
  const room = Math.max(260, Math.min(innerHeight - above - below, 1000));
  const wide = Math.min(by("stage").clientWidth, room * part.width / (part.height * content.aspect));
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(wide * ratio));
  canvas.height = Math.max(1, Math.round(canvas.width * part.height * content.aspect / part.width));
  canvas.style.width = `${canvas.width / ratio}px`;
  canvas.style.height = `${canvas.height / ratio}px`;
  const context = canvas.getContext("2d");
  context.setTransform(canvas.width / part.width, 0, 0, canvas.height / part.height,
    -part.x * canvas.width / part.width, -part.y * canvas.height / part.height);
  if (mosaic !== null) {
    window_slice();
    context.imageSmoothingQuality = "high";
    context.drawImage(grey, 0, 0);
  }
  drawMasks(context, part.width / canvas.width * ratio);
  drawStrip();
  describe(one);
}

function window_slice() {
  const { height, width, columns, tile } = content;
  [grey.width, grey.height] = [width, height];
  const context = grey.getContext("2d", { willReadFrequently: true });
  context.drawImage(mosaic, -(state.slice % columns) * tile[1], -Math.floor(state.slice / columns) * tile[0]);
  const pixels = context.getImageData(0, 0, width, height), values = pixels.data;
  for (let at = 0; at < values.length; at += 4) {
    values[at] = values[at + 1] = values[at + 2] = 255 * (values[at] - state.low) / (state.high - state.low); // it clamps by itself
  }
  context.putImageData(pixels, 0, 0);
}

// Outlines lie on the pixels' edges; the truth's are wider, so that both are seen where they coincide. `pixel`: one of the screen's.
function drawMasks(context, pixel) {
  const byClass = by("by-class").checked;
  const masks = sources.map((_, source) => state.shown[source] ? decoded(source, state.slice) : null);
  const drawn = masks.flatMap((mask, source) => mask === null ? [] :
    labels().filter((label) => !state.label || label === state.label).map((label) => ({ mask, source, label })));
  for (const { mask, source, label } of drawn) {
    if (state.style === "fill" && !(byClass && source === 0)) fill(context, mask, label, byClass ? classColour(label) : colour(source));
  }
  for (const { mask, source, label } of drawn) {
    const edge = outline(mask, label), width = source ? 2 : 4;
    context.setLineDash(byClass && source ? [4 * pixel, 3 * pixel] : []);
    for (const [style, further] of [["rgba(0, 0, 0, 0.55)", 1.5], [byClass ? classColour(label) : colour(source), 0]]) {
      Object.assign(context, { strokeStyle: style, lineWidth: (width + further) * pixel, lineCap: "square" });
      context.stroke(edge);
    }
  }
}

const inside = (value, label) => label ? value === label : value > 0;

function outline(mask, label) {
  const { height, width } = content, path = new Path2D();
  const at = (y, x) => y >= 0 && x >= 0 && y < height && x < width && inside(mask[y * width + x], label);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!at(y, x)) continue;
      if (!at(y - 1, x)) { path.moveTo(x, y); path.lineTo(x + 1, y); }
      if (!at(y + 1, x)) { path.moveTo(x, y + 1); path.lineTo(x + 1, y + 1); }
      if (!at(y, x - 1)) { path.moveTo(x, y); path.lineTo(x, y + 1); }
      if (!at(y, x + 1)) { path.moveTo(x + 1, y); path.lineTo(x + 1, y + 1); }
    }
  }
  return path;
}

function fill(context, mask, label, of) {
  const { height, width } = content;
  [tint.width, tint.height] = [width, height];
  const own = tint.getContext("2d"), pixels = own.createImageData(width, height);
  const rgb = [1, 3, 5].map((place) => parseInt(of.slice(place, place + 2), 16));
  for (let at = 0; at < mask.length; at++) if (inside(mask[at], label)) pixels.data.set([...rgb, 90], 4 * at);
  own.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(tint, 0, 0);
}

// A row for each mask, a mark for each slice that has any of it, its height the mask's area.
function drawStrip() {
  const canvas = by("strip"), ratio = devicePixelRatio || 1, wide = canvas.clientWidth, slices = index.patients[state.patient].slices;
  const rows = sources.filter((_, source) => content.areas[source] !== null).length;
  canvas.style.height = `${rows * ROW + 4}px`;
  [canvas.width, canvas.height] = [wide * ratio, (rows * ROW + 4) * ratio];
  const context = canvas.getContext("2d"), pace = (wide - THUMB) / Math.max(slices - 1, 1);
  context.scale(ratio, ratio);
  context.fillStyle = "#5a6470";
  context.fillRect(THUMB / 2 + state.slice * pace - Math.max(pace, 2) / 2, 0, Math.max(pace, 2), rows * ROW + 4);
  const most = Math.max(1, ...content.areas.flatMap((areas) => areas ?? []));
  let base = 2;
  content.areas.forEach((areas, source) => {
    if (areas === null) return;
    base += ROW;
    context.fillStyle = colour(source);
    context.globalAlpha = state.shown[source] ? 1 : 0.3;
    areas.forEach((area, slice) => {
      const high = area ? Math.max(2, (ROW - 2) * area / most) : 0;
      context.fillRect(THUMB / 2 + slice * pace - Math.max(0.8 * pace, 1.5) / 2, base - high, Math.max(0.8 * pace, 1.5), high);
    });
  });
}

// --- words: what is on the screen, for the eye, for a screen reader, and for a link

let later = 0;
function describe(one) {
  const here = sources.filter((_, source) => content.areas[source]?.[state.slice]);
  const place = `Slice ${state.slice + 1} of ${one.slices}`;
  by("where").textContent = `${place}: ${here.length ? here.join(", ") : "no mask here"}`;
  by("slice").value = state.slice;
  by("slice").setAttribute("aria-valuetext", by("where").textContent);
  by("image").setAttribute("aria-label", `${one.name}, ${content.channels[state.channel].name}, ${by("where").textContent}`);
  clearTimeout(later); // browsers limit how often an address may change
  later = setTimeout(() => {
    by("said").textContent = by("image").getAttribute("aria-label");
    history.replaceState(null, "", `#patient=${encodeURIComponent(one.name)}&slice=${state.slice + 1}`);
  }, 200);
}

function followAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const at = index.patients.findIndex((one) => one.name === asked.get("patient"));
  const slice = Number.parseInt(asked.get("slice"), 10) - 1;
  if (at >= 0) open(at, Number.isNaN(slice) ? undefined : slice);
  return at >= 0;
}

// --- hands

const go = (slice) => open(state.patient, slice);
const choose = (style) => { state.style = style; document.querySelector(`[name=style][value=${style}]`).checked = true; draw(); };
const sortBy = (order) => { state.order = order; listPatients(); };
const pick = (label) => { state.label = label; by("class").value = label; draw(); };
const flip = (id) => { by(id).checked = !by(id).checked; draw(); };

const KEYS = {
  ArrowLeft: () => go(state.slice - 1), ArrowDown: () => go(state.slice - 1),
  ArrowRight: () => go(state.slice + 1), ArrowUp: () => go(state.slice + 1),
  PageDown: () => go(state.slice - 5), PageUp: () => go(state.slice + 5),
  Home: () => go(0), End: () => go(Infinity),
  n: () => step(1), p: () => step(-1),
  t: () => toggle(0), h: () => { const on = !state.shown.some(Boolean); sources.forEach((_, source) => toggle(source, on)); },
  f: () => choose(state.style === "fill" ? "outline" : "fill"),
  c: () => showChannel((state.channel + 1) % content.channels.length),
  z: () => flip("zoom"), b: () => index.classes.length && flip("by-class"),
  k: () => index.classes.length && pick((state.label + 1) % index.classes.length),
  s: () => sortBy((state.order + 1) % orders.length),
  g: () => open(state.patient), r: () => { resetWindow(); draw(); },
  "+": () => moveWindow(0, 10), "=": () => moveWindow(0, 10), "-": () => moveWindow(0, -10), ".": () => moveWindow(6, 0), ",": () => moveWindow(-6, 0),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const own = event.target.matches("select, #brightness, #contrast, [type=radio]") && /^(Arrow|Page|Home|End)/.test(event.key);
  const typed = event.target.matches("select") && event.key.length === 1; // a select goes to the option that begins with it
  if (own || typed) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = /^[1-9]$/.test(key) && sources[key] !== undefined ? () => toggle(Number(key)) : KEYS[key];
  if (action) {
    event.preventDefault();
    action();
  }
});

by("slice").addEventListener("input", () => go(Number(by("slice").value)));
by("sort").addEventListener("change", () => sortBy(Number(by("sort").value)));
by("class").addEventListener("change", () => pick(Number(by("class").value)));
document.querySelectorAll("[name=style]").forEach((radio) => radio.addEventListener("change", () => choose(radio.value)));
for (const id of ["zoom", "by-class"]) by(id).addEventListener("change", draw);
by("brightness").addEventListener("input", () => setWindow(255 - by("brightness").value, state.high - state.low));
by("contrast").addEventListener("input", () => setWindow((state.low + state.high) / 2, 255 - by("contrast").value));
for (const [id, key] of [["reset", "r"], ["largest", "g"], ["next", "n"], ["previous", "p"]]) by(id).addEventListener("click", KEYS[key]);
by("strip").addEventListener("pointerdown", (event) => {
  const wide = by("strip").clientWidth - THUMB;
  go(Math.round((event.offsetX - THUMB / 2) / wide * (index.patients[state.patient].slices - 1)));
});
by("stage").addEventListener("wheel", (event) => {
  if (event.ctrlKey || !event.deltaY) return;
  event.preventDefault();
  go(state.slice + Math.sign(event.deltaY));
}, { passive: false });
by("image").addEventListener("pointermove", (event) => {
  if (event.pointerType === "mouse" && event.buttons) moveWindow(-event.movementY / 2, event.movementX / 2);
});
addEventListener("hashchange", followAddress);
addEventListener("resize", () => state.patient >= 0 && draw());

// --- the start: the patient of the address, else the first of the list at its largest tumour

by("title").textContent = index.title;
by("notes").replaceChildren(...index.notes.map((note) => make("li", note)));
by("sort").replaceChildren(...orders.map(([name], order) => Object.assign(make("option", name), { value: order })));
if (index.classes.length) {
  for (const id of ["class-choice", "colour-choice", "class-colours"]) by(id).hidden = false;
  by("class").replaceChildren(...["all", ...index.classes.slice(1)].map((name, label) => Object.assign(make("option", name), { value: label })));
  by("class-colours").replaceChildren(...index.classes.slice(1).map((name, at) => {
    const item = make("li"), swatch = make("span", "", "swatch");
    swatch.style.background = classColour(at + 1);
    item.append(swatch, ` ${name}`);
    return item;
  }));
}
if (index.left_out.length) {
  by("left-out").hidden = false;
  by("left-out").firstElementChild.textContent = `${index.left_out.length} more scored, not on this page`;
  by("left-out").lastElementChild.textContent = index.left_out.join(", ");
}
listPatients();
if (index.patients.length && !followAddress()) open(sorted[0]);
