// The page of a build daemon. Everything a build says is put in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "\u0068ttp:" + "//www.w3.org/2000/svg";
const MAX_LOG = 2_000_000; // characters of output that are kept in the page
const LIST_EVERY = 3000; // milliseconds

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function seconds(millis) {
  if (millis === null || millis === undefined) return "";
  if (millis < 1000) return Math.round(millis) + " ms";
  return millis < 60_000 ? (millis / 1000).toFixed(1) + " s" : Math.floor(millis / 60_000) + " m " + Math.round((millis % 60_000) / 1000) + " s";
}

function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return count.toFixed(unit === "B" ? 0 : 1) + " " + unit;
    count /= 1000;
  }
  return count.toFixed(1) + " TB";
}

// Removes what terminals read as commands (colours and cursor moves mean nothing here) and what turns the direction of
// writing: a line could show other words than it has.
function plain(text) {
  return text.replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "").replace(/\u001b(\[[0-9;?]*[ -\/]*[@-~]|\][^\u0007\u001b]*(\u0007|\u001b\\)?|[@-Z\\-_])/g, "").replace(/\r(?!\n)/g, "\n").replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, "");
}

let list = null; // the timer of the list
let source = null; // the events of the build that is shown
let build = null; // what is known of it

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(path + ": " + answer.status);
  return answer.json();
}

function row(one) {
  const link = make("a", { href: "#build/" + encodeURIComponent(one.ref) }, plain(one.title || one.ref));
  const took = one.started && one.ended ? seconds(one.ended - one.started) : "";
  const when = one.started ? new Date(one.started).toLocaleString() : "now";
  return make("tr", {}, make("td", {}, make("span", { class: "tag " + one.state }, one.state)), make("td", {}, link), make("td", {}, when), make("td", { class: "number" }, took),
    make("td", { class: "number" }, one.steps === undefined ? "" : one.cached + " of " + one.steps + " cached"), make("td", {}, plain(one.identity || one.error || "")));
}

async function showList() {
  try {
    const all = await get("api/builds");
    const head = make("tr", {}, ...["", "build", "begun", "took", "steps", ""].map((text) => make("th", {}, text)));
    const rows = [...all.running, ...all.over].map(row);
    const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
    $("list").replaceChildren(rows.length ? table : make("p", {}, "No builds yet."));
    $("state").textContent = all.running.length + " running";
  } catch (error) {
    $("state").textContent = String(error.message);
  }
}

async function showDisk() {
  const disk = await get("api/disk");
  const head = make("tr", {}, ...["kind", "size", "in use", "what"].map((text) => make("th", {}, text)));
  const rows = disk.records.map((one) => make("tr", {}, make("td", {}, one.kind), make("td", { class: "number" }, bytes(one.size)), make("td", {}, one.inUse ? "yes" : ""), make("td", {}, plain(one.description || one.id))));
  $("disk").replaceChildren(make("h2", {}, "Disk use"), make("p", { id: "totals" }, bytes(disk.total) + " in all, " + bytes(disk.reclaimable) + " could be freed, " + bytes(disk.free) + " free on the disk"),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function stateOf(vertex) {
  if (vertex.error) return "failed";
  if (vertex.cached) return "cached";
  if (vertex.ended) return "done";
  return vertex.started ? "running" : "waiting";
}

// What the end waited for: from the step that ended last, back to the input that did, and so on. Steps of the build
// itself have no inputs: they waited for what ended last before they began. Nobody waited for what was cached.
function criticalPath(vertexes) {
  const end = (vertex) => vertex.ended || (vertex.started ? Date.now() : 0);
  let at = null;
  for (const vertex of vertexes.values()) if (vertex.started && (!at || end(vertex) > end(at))) at = vertex;
  const path = new Set();
  while (at && !path.has(at.digest)) {
    path.add(at.digest);
    let next = null;
    for (const input of at.inputs || []) {
      const vertex = vertexes.get(input);
      if (vertex && vertex.started && !vertex.cached && !path.has(input) && (!next || end(vertex) > end(next))) next = vertex;
    }
    if (!next) for (const vertex of vertexes.values()) if (vertex.ended && !vertex.cached && !path.has(vertex.digest) && vertex.ended <= at.started && (!next || vertex.ended > next.ended)) next = vertex;
    at = next;
  }
  return path;
}

const CAUSES = { first: "no earlier build of it is known", changed: "something that it depends on changed", gone: "its result is no longer there", "no-cache": "the build asked for no cache", volatile: "what it reads is found out by reading it" };
const MAX_VALUE = 120; // characters of a value in a reason

function value(text) {
  if (text === null || text === undefined) return "nothing";
  return "“" + (text.length > MAX_VALUE ? text.slice(0, MAX_VALUE) + "…" : text) + "”";
}

function changed(change) {
  const turned = ": " + value(change.before) + " became " + value(change.after);
  switch (change.what) {
    case "files": {
      const more = change.count - change.paths.length;
      return "files " + change.summary.replaceAll("-", " ") + ": " + change.paths.join(", ") + (more > 0 ? " and " + more + " more" : "");
    }
    case "content": return "what it reads changed";
    case "instruction": return "the instruction changed" + turned;
    case "variable": return "the variable " + change.name + " changed" + turned;
    case "base": return "the base image changed" + turned;
    case "input": return "the step before it made another result: " + change.step;
    case "secrets": return "a secret changed";
    case "field": return change.path + " changed" + turned;
    default: return change.what;
  }
}

function why(reason) {
  // Directories of clients are read by every build: that is no miss.
  if (!reason || reason.cause === "volatile") return "";
  const changes = (reason.changes || []).slice(0, 5).map((change) => plain(changed(change)));
  return "ran because " + (changes.length ? changes.join("; ") : CAUSES[reason.cause] || reason.cause);
}

function drawTimeline(path) {
  const begun = [...build.vertexes.values()].filter((vertex) => vertex.started);
  begun.sort((a, b) => a.started - b.started || (a.ended || 0) - (b.ended || 0));
  const first = begun.length ? begun[0].started : 0;
  const last = Math.max(first + 1, ...begun.map((vertex) => vertex.ended || Date.now()));
  const rows = begun.map((vertex) => {
    const state = stateOf(vertex);
    const end = vertex.ended || Date.now();
    const left = (1000 * (vertex.started - first)) / (last - first);
    const width = Math.max(3, (1000 * (end - vertex.started)) / (last - first));
    const bar = draw("rect", { x: left.toFixed(1), y: "3", width: width.toFixed(1), height: "14", class: state + (path.has(vertex.digest) ? " path" : "") });
    const name = make("button", { class: "name", type: "button", title: vertex.name }, vertex.name);
    name.addEventListener("click", () => { build.selected = build.selected === vertex.digest ? null : vertex.digest; redraw(); writeLog(); });
    const parts = [name, draw("svg", { viewBox: "0 0 1000 20", preserveAspectRatio: "none", role: "img", "aria-label": state }, bar), make("span", { class: "time" }, vertex.cached ? "cached" : seconds(end - vertex.started))];
    const reason = why(vertex.reason);
    if (reason) parts.push(make("span", { class: "why" }, reason));
    return make("div", { class: "row" + (build.selected === vertex.digest ? " selected" : "") }, ...parts);
  });
  $("timeline").replaceChildren(...rows);
}

function drawGraph(path) {
  const level = new Map();
  const depth = (digest, seen) => {
    if (level.has(digest)) return level.get(digest);
    if (seen.has(digest)) return 0;
    seen.add(digest);
    const vertex = build.vertexes.get(digest);
    const inputs = (vertex.inputs || []).filter((input) => build.vertexes.has(input));
    const found = inputs.length ? 1 + Math.max(...inputs.map((input) => depth(input, seen))) : 0;
    level.set(digest, found);
    return found;
  };
  const columns = [];
  for (const vertex of build.vertexes.values()) {
    if (!vertex.inputs) continue;
    const at = depth(vertex.digest, new Set());
    (columns[at] ||= []).push(vertex);
  }
  const place = new Map();
  const parts = [];
  columns.forEach((column, x) => (column || []).forEach((vertex, y) => place.set(vertex.digest, { x: 10 + 230 * x, y: 10 + 44 * y })));
  for (const [digest, at] of place) {
    const vertex = build.vertexes.get(digest);
    for (const input of vertex.inputs || []) {
      const from = place.get(input);
      if (!from) continue;
      const both = path.has(digest) && path.has(input);
      const [x, y] = [from.x + 200, from.y + 15];
      parts.push(draw("path", { d: `M${x},${y} C${x + 15},${y} ${at.x - 15},${at.y + 15} ${at.x},${at.y + 15}`, class: both ? "path" : "" }));
    }
  }
  for (const [digest, at] of place) {
    const vertex = build.vertexes.get(digest);
    const box = draw("rect", { x: at.x, y: at.y, width: 200, height: 30, rx: 4, class: "box " + stateOf(vertex) + (path.has(digest) ? " path" : "") });
    const label = draw("text", { x: at.x + 6, y: at.y + 19 });
    label.textContent = vertex.name.length > 30 ? vertex.name.slice(0, 29) + "…" : vertex.name;
    const title = draw("title");
    title.textContent = vertex.name;
    parts.push(draw("g", {}, title, box, label));
  }
  const width = 20 + 230 * columns.length;
  const height = 20 + 44 * Math.max(1, ...columns.map((column) => (column || []).length));
  $("graph").replaceChildren(draw("svg", { width, height, viewBox: `0 0 ${width} ${height}` }, ...parts));
}

function drawError(error) {
  $("error").hidden = !error;
  if (!error) return;
  const parts = [make("p", {}, plain(error.message))];
  for (const from of error.sources || []) {
    const marked = new Set();
    for (const range of from.ranges || []) for (let line = range.start.line; line <= (range.end || range.start).line; line++) marked.add(line);
    const first = Math.max(1, Math.min(...marked) - 3);
    const last = Math.max(...marked) + 3;
    const lines = from.text.split("\n").map((text, at) => [at + 1, text]).filter(([at]) => at >= first && at <= last);
    const pre = make("pre", { class: "excerpt" }, ...lines.map(([at, text]) => make("span", { class: "line" + (marked.has(at) ? " marked" : "") }, String(at).padStart(4) + (marked.has(at) ? " > " : "   ") + plain(text))));
    parts.push(make("p", {}, from.name || "Dockerfile"), pre);
  }
  $("error").replaceChildren(...parts);
}

function redraw() {
  const path = criticalPath(build.vertexes);
  drawTimeline(path);
  drawGraph(path);
  const all = [...build.vertexes.values()];
  const count = (state) => all.filter((vertex) => stateOf(vertex) === state).length;
  $("summary").textContent = `${all.length} steps: ${count("done")} ran, ${count("cached")} cached, ${count("running")} running, ${count("failed")} failed` + (build.over ? "" : " — live") + (build.warnings.length ? ` — ${build.warnings.length} warnings` : "");
}

function writeLog() {
  const log = $("log");
  const shown = build.log.filter((one) => !build.selected || one.digest === build.selected).map((one) => one.text);
  log.textContent = shown.join("");
  if ($("follow").checked) log.scrollTop = log.scrollHeight;
}

function take(event) {
  for (const vertex of event.vertexes || []) {
    const known = build.vertexes.get(vertex.digest) || {};
    build.vertexes.set(vertex.digest, { ...known, ...vertex, name: plain(vertex.name) });
  }
  for (const step of event.steps || []) {
    const known = build.vertexes.get(step.digest);
    if (known) known.reason = step.reason;
  }
  let added = "";
  for (const one of event.logs || []) {
    const text = plain(one.text);
    build.log.push({ digest: one.digest, text });
    build.length += text.length;
    if (!build.selected || build.selected === one.digest) added += text;
  }
  while (build.length > MAX_LOG && build.log.length) build.length -= build.log.shift().text.length;
  build.warnings.push(...(event.warnings || []));
  if (added) {
    $("log").append(added);
    if ($("follow").checked) $("log").scrollTop = $("log").scrollHeight;
  }
  if (event.over) {
    build.over = true;
    source.close();
    drawError(event.error);
    writeLog();
  }
  if (!build.drawing) {
    build.drawing = true;
    requestAnimationFrame(() => { build.drawing = false; redraw(); });
  }
}

// Puts the name of a build in the place of its reference, once that is known.
async function nameBuild(reference) {
  try {
    const all = await get("api/builds");
    const one = [...all.running, ...all.over].find((known) => known.ref === reference);
    if (!one || !one.title || build.reference !== reference) return;
    $("title").textContent = plain(one.title);
    $("reference").textContent = reference;
  } catch { /* its reference names it, too */ }
}

function showBuild(reference) {
  build = { reference, vertexes: new Map(), log: [], length: 0, warnings: [], selected: null, over: false, drawing: false };
  $("title").textContent = reference;
  $("reference").textContent = "";
  nameBuild(reference);
  $("log").textContent = "";
  drawError(null);
  redraw();
  source = new EventSource("api/builds/" + encodeURIComponent(reference) + "/events");
  const own = source;
  source.onmessage = (message) => { if (own === source) take(JSON.parse(message.data)); };
  source.onerror = () => { if (own === source && own.readyState === EventSource.CLOSED) $("summary").textContent = "There is no such build."; };
}

function route() {
  const [kind, reference] = location.hash.slice(1).split("/");
  if (source) source.close();
  source = null;
  clearInterval(list);
  $("list").hidden = kind !== "";
  $("build").hidden = kind !== "build";
  $("disk").hidden = kind !== "disk";
  if (kind === "build") showBuild(decodeURIComponent(reference || ""));
  else if (kind === "disk") showDisk();
  else { showList(); list = setInterval(showList, LIST_EVERY); }
}

addEventListener("hashchange", route);
$("follow").addEventListener("change", () => build && writeLog());
route();
