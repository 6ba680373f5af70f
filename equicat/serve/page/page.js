// The page of `equicat serve`: a form that is checked as it is filled, the list of jobs, and one job as it runs.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const at = id => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const number = (value, digits) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
const say = text => { at("said").textContent = text; };

// ---- talking to the server -----------------------------------------------------------------------------------------

class Refused extends Error {}

async function ask(method, address, body) {
  const how = { method, cache: "no-store" };
  if (body !== undefined) how.body = body instanceof Blob ? body : JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(address, how);
  } catch {
    connection("The server does not answer. This page goes on when `equicat serve` runs again.");
    throw new Refused("the server does not answer");
  }
  if (answer.status === 403) connection("The key of this page is not that of the server. Open the address that `equicat serve` printed.");
  else connection("");
  const found = await answer.json().catch(() => ({ error: `the server answered with status ${answer.status}` }));
  if (!answer.ok) throw new Refused(found.error ?? `the server answered with status ${answer.status}`);
  return found;
}

function connection(text) {
  if (at("connection").textContent !== text) at("connection").textContent = text;
  at("connection").hidden = !text;
}

// ---- the form ------------------------------------------------------------------------------------------------------

const form = { slab: null, bulk: null, adsorbates: [], sites: [], view: null, asked: 0, timer: 0 };
const checked = name => [...document.querySelectorAll(`#${name} input:checked`)].map(input => input.value);
const listed = text => text.split(/[,;\s]+/).filter(Boolean);
const SETTINGS = ["fmax", "max_steps", "rotations", "n_random", "fixed_layers"];

function request() {
  const source = checked("source")[0];
  const size = ["a", "b", "layers"].map(part => at(`size-${part}`).value.trim() || "0").join("x");
  const settings = SETTINGS.filter(name => at(name).value.trim()).map(name => [name, at(name).value.trim()]);
  return {
    slab: source === "file" ? "" : `${source === "bulk" ? "bulk" : at("bulk").value}(${at("facet").value.trim()}) ${size}`,
    slab_file: source === "file" ? form.slab?.token ?? "" : "",
    bulk_file: source === "bulk" ? form.bulk?.token ?? "" : "",
    adsorbates: [...checked("adsorbates"), ...listed(at("together").value)],
    adsorbate_files: form.adsorbates.map(upload => upload.token),
    smiles: (at("smiles")?.value ?? "").split(/[,;\s]+/).filter(Boolean),
    sites: checked("site-chips"),
    ...Object.fromEntries(settings),
  };
}

function verdict(...children) {
  at("verdict").replaceChildren(...children);
  at("verdict").setAttribute("aria-busy", "false");
}

function changed() {
  clearTimeout(form.timer);
  at("submit").disabled = true;  // until the new request is checked
  at("verdict").setAttribute("aria-busy", "true");
  form.timer = setTimeout(check, 350);
}

async function check() {
  const asked = request(), turn = ++form.asked;
  const missing = !asked.slab && !asked.slab_file ? "Upload a slab." :
    checked("source")[0] === "bulk" && !asked.bulk_file ? "Upload a bulk." :
    !asked.adsorbates.length && !asked.adsorbate_files.length && !asked.smiles.length ? "Choose an adsorbate." : "";
  at("submit").disabled = Boolean(missing);
  if (missing) {
    verdict(make("p", { class: "soft" }, missing));
    return;
  }
  try {
    const found = await ask("POST", "/api/check", asked);
    if (turn !== form.asked) return;  // The form has changed meanwhile.
    form.view = found.slab;
    at("show-slab").disabled = false;
    sites(found.sites);
    verdict(make("p", {}, make("b", {}, found.title), `: ${plural(found.n_placements, "placement")}, ` +
      `${plural(found.n_systems, "relaxation")} in all.`), ...warnings(found.warnings));
    at("submit").disabled = false;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (turn !== form.asked) return;
    verdict(make("p", { class: "error" }, `${error.message}.`));
    at("submit").disabled = true;
  }
}

function warnings(texts) {
  return texts.map(text => {
    const [what, ...rest] = text.split(": "), parts = rest.join(": ").split("; ");
    if (parts.length < 3) return make("p", { class: "warning" }, `Warning: ${text}.`);
    return make("details", { class: "warning" }, make("summary", {}, `Warning: ${what}, in ${parts.length} ways`),
      make("ul", {}, ...parts.map(part => make("li", {}, part))));
  });
}

function sites(names) {
  if (names.join() === form.sites.join()) return;
  form.sites = names;
  const before = new Set(checked("site-chips"));
  at("site-chips").replaceChildren(...names.map(name => {
    const box = make("input", { type: "checkbox", value: name });
    box.checked = before.has(name);
    return make("label", {}, box, make("span", {}, name));
  }));
}

async function upload(kind, file, said) {
  said.className = "said";
  said.textContent = `Reading ${file.name} …`;
  try {
    const found = await ask("POST", `/api/uploads?kind=${kind}&name=${encodeURIComponent(file.name)}`, file);
    said.textContent = kind === "adsorbate" ? "" : `${found.label} is read.`;
    return found;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    said.className = "said error";
    said.textContent = `${error.message}.`;
    return null;
  }
}

function uploadedAdsorbates() {
  at("adsorbate-files").replaceChildren(...form.adsorbates.map(one => {
    const button = make("button", { type: "button", class: "small" }, "remove");
    button.setAttribute("aria-label", `remove ${one.label}`);
    button.addEventListener("click", () => {
      form.adsorbates = form.adsorbates.filter(other => other !== one);
      uploadedAdsorbates();
      changed();
    });
    return make("li", {}, one.label, button);
  }));
}

for (const kind of ["slab", "bulk"]) {
  at(`${kind}-file`).addEventListener("change", async event => {
    const [file] = event.target.files;
    if (!file) return;
    form[kind] = await upload(kind, file, at(`${kind}-file-said`));
    event.target.value = "";  // The same name can be chosen again after a change.
    changed();
  });
}
at("adsorbate-file").addEventListener("change", async event => {
  for (const file of [...event.target.files]) {
    const found = await upload("adsorbate", file, at("adsorbate-file-said"));
    if (found && !form.adsorbates.some(one => one.token === found.token)) form.adsorbates.push(found);
  }
  event.target.value = "";
  uploadedAdsorbates();
  changed();
});
at("form").addEventListener("input", event => {
  const source = checked("source")[0];
  at("built").hidden = source === "file";
  at("bulk-label").hidden = source !== "built";
  at("bulk-upload").hidden = source !== "bulk";
  at("file").hidden = source !== "file";
  if (event.target.type !== "file") changed();
});
at("form").addEventListener("submit", async event => {
  event.preventDefault();
  at("submit").disabled = true;
  try {
    const { id } = await ask("POST", "/api/jobs", request());
    say(`Job ${id} is in the queue.`);
    location.hash = `job-${id}`;
    await refresh();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    verdict(make("p", { class: "error" }, `${error.message}.`));
  } finally {
    at("submit").disabled = false;
  }
});
at("show-slab").addEventListener("click", () => equicatViewer.show(at("slab-view"), form.view));

// ---- the list of jobs ----------------------------------------------------------------------------------------------

const lines = new Map();
let chosen = 0;

function duration(job) {
  if (!job.started) return "";
  const seconds = Math.max(0, Math.round((job.ended ?? Date.now() / 1000) - job.started));
  return seconds < 90 ? `${seconds} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function stateOf(job) {
  const share = `${job.n_finished} of ${job.n_systems}`;
  return { queued: "waiting", running: `running, ${share}`, cancelled: `cancelled at ${share}` }[job.state] ?? job.state;
}

function listJobs(jobs) {
  for (const [id, line] of lines) if (!jobs.some(job => job.id === id)) { line.remove(); lines.delete(id); }
  jobs.forEach((job, place) => {
    let line = lines.get(job.id);
    if (!line) {
      line = make("li", {}, make("span", { class: "number" }, `${job.id}`), make("a", { href: `#job-${job.id}` }, job.title), make("span", { class: "state" }));
      lines.set(job.id, line);
    }
    line.className = `${job.state}${job.id === chosen ? " chosen" : ""}`;
    line.children[1].toggleAttribute("aria-current", job.id === chosen);
    if (line.children[2].textContent !== stateOf(job)) line.children[2].textContent = stateOf(job);
    if (at("jobs").children[place] !== line) at("jobs").insertBefore(line, at("jobs").children[place] ?? null);
  });
  at("no-jobs").hidden = jobs.length > 0;
}

// ---- one job -------------------------------------------------------------------------------------------------------

const COLUMNS = [
  { title: "adsorbate", key: row => row.adsorbate, text: true },
  { title: "energy [eV]", key: row => row.energy, digits: 3 },
  { title: "relaxed to", key: row => row.relaxed_site || "–", text: true },
  { title: "placed at", key: row => row.site, text: true },
  { title: "placements", key: row => row.n_placements, digits: 0 },
  { title: "steps", key: row => row.n_steps, digits: 0 },
  { title: "largest force [eV/Å]", key: row => row.fmax, digits: 3 },
  { title: "remarks", key: row => row.relaxing ? "relaxing …" : [...row.flags, ...(row.converged ? [] : ["not converged"])].join(", "), text: true },
];
const order = { column: -1, up: true };
let drawn = "", shownSystem = -1, current = null;

COLUMNS.forEach((column, place) => {
  const button = make("button", { type: "button" }, column.title);
  const head = make("th", { scope: "col", ...(column.text ? { class: "text" } : {}) }, button);
  button.addEventListener("click", () => {
    order.up = order.column === place ? !order.up : true;
    order.column = place;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order.up ? "ascending" : "descending");
    table();
  });
  document.querySelector("#rows thead tr").append(head);
});

function sorted(rows) {
  if (order.column < 0) return rows;
  const { key, text } = COLUMNS[order.column], sign = order.up ? 1 : -1;
  const compare = text ? (a, b) => a.localeCompare(b) : (a, b) => a - b;
  return [...rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);  // What has no number comes last, either way.
    return sign * compare(x, y);
  });
}

function table() {
  const focused = document.activeElement?.dataset?.system;
  document.querySelector("#rows tbody").replaceChildren(...sorted(current.rows).map(row => {
    const cells = COLUMNS.map(({ key, digits, text }) => make("td", text ? { class: "text" } : {}, text ? key(row) : number(key(row), digits)));
    cells.at(-1).className = "text remarks";
    if (!row.relaxing) {
      const button = make("button", { type: "button", "data-system": row.system }, row.adsorbate);
      button.setAttribute("aria-label", `${row.adsorbate} at ${row.relaxed_site || row.site}: show in 3D`);
      button.addEventListener("click", () => showSystem(row));
      cells[0].replaceChildren(button);
    }
    const line = make("tr", {}, ...cells);
    if (!row.converged || row.flags.length || row.energy === null) line.classList.add("doubtful");
    if (row.system === shownSystem) line.classList.add("shown");
    return line;
  }));
  if (focused) document.querySelector(`#rows button[data-system="${focused}"]`)?.focus();
}

async function showSystem(row) {
  shownSystem = row.system;
  const job = chosen;
  const view = await ask("GET", `/api/jobs/${job}/systems/${row.system}`);
  if (job !== chosen || row.system !== shownSystem) return;
  table();
  await equicatViewer.show(at("job-view"), view);
}

function actions(job) {
  const button = (title, act) => {
    const made = make("button", { type: "button", class: "small" }, title);
    made.addEventListener("click", async () => {
      made.disabled = true;
      try { await act(); } catch (error) { if (!(error instanceof Refused)) throw error; say(`${error.message}.`); }
      await refresh();
    });
    return made;
  };
  const post = what => () => ask("POST", `/api/jobs/${job.id}/${what}`);
  const remove = async () => {
    if (!confirm(`Remove job ${job.id}, ${job.title}, with its results?`)) return;
    await ask("DELETE", `/api/jobs/${job.id}`);
    location.hash = "";
    say(`Job ${job.id} is removed.`);
  };
  if (job.state === "queued" || job.state === "running") return [button("Cancel", post("cancel"))];
  return [...(job.state === "done" ? [] : [button("Go on", post("again"))]), button("Remove", remove)];
}

function stepSentence(job) {
  const going = job.rows.filter(row => row.relaxing);
  if (!going.length) return "";
  return `Now at step ${Math.max(...going.map(row => row.n_steps))} of at most ${job.request.max_steps}, ` +
    `largest force ${number(Math.max(...going.map(row => row.fmax)), 3)} eV/Å.`;
}

function stateSentence(job) {
  const share = `${job.n_finished} of ${job.n_systems} relaxed`;
  return {
    queued: "Waits for the jobs before it.",
    running: job.n_finished ? `${share}.` : `Relaxing ${plural(job.n_systems, "system")} together; none has ended yet.`,
    done: `Done: ${plural(job.rows.length, "distinct structure")}, in ${duration(job)}.`,
    failed: `Failed: ${job.message}.`,
    cancelled: `Cancelled; ${share}.`,
  }[job.state];
}

const FILES = { "table.csv": "table (CSV)", "structures.extxyz": "structures (extended XYZ)", "page.html": "page of this screening", "log.txt": "log" };

function draw(job) {
  const finished = current?.id === job.id && current.state !== job.state;
  current = job;
  const text = JSON.stringify(job);
  if (text === drawn) return;
  drawn = text;
  at("job").hidden = false;
  at("job-title").textContent = `${job.id}: ${job.title}`;
  at("job-progress").max = job.n_systems;
  at("job-progress").value = job.n_finished;
  at("job-progress").hidden = job.state === "done";
  if (at("job-state").textContent !== stateSentence(job)) at("job-state").textContent = stateSentence(job);
  at("job-now").textContent = stepSentence(job);
  at("job-state").className = job.state === "failed" ? "error" : "";
  if (finished || at("job-actions").dataset.of !== `${job.id} ${job.state}`) {
    at("job-actions").dataset.of = `${job.id} ${job.state}`;
    at("job-actions").replaceChildren(...actions(job));
  }
  at("job-warnings").replaceChildren(...warnings(job.warnings));
  document.querySelector("#rows").hidden = !job.rows.length;
  at("rows-caption").textContent = job.state === "done" ?
    "One row for each distinct relaxed structure; energies are for one adsorbate. Grey rows have flags or did not converge." :
    "One row for each placement; energies once it and the clean slab are relaxed.";
  table();
  const files = job.files.filter(name => job.state === "done" ? name !== "log.txt" : job.state === "failed" && name === "log.txt");
  at("downloads").replaceChildren(...files.map(name => make("a", {
    href: `/api/jobs/${job.id}/${name}`, ...(/html|txt/.test(name) ? { target: "_blank", rel: "noopener" } : {}) }, FILES[name])));
  at("notes").replaceChildren(...[...job.reference, ...job.notes, settings(job)].map(note => make("li", {}, note)));
  if (job.state === "done" && shownSystem < 0 && job.rows.length) showSystem(job.rows[0]);
}

function settings({ request, labels }) {
  const said = SETTINGS.filter(name => request[name] !== null).map(name => `${name} ${request[name]}`);
  const files = Object.values(labels);
  return `Settings: ${said.join(", ")}, sites ${request.sites.join(", ") || "all"}${files.length ? `; files ${files.join(", ")}` : ""}.`;
}

function choose() {
  const id = Number(/^#job-(\d+)$/.exec(location.hash)?.[1] ?? 0);
  if (id === chosen) return;
  chosen = id;
  [drawn, shownSystem, current] = ["", -1, null];
  equicatViewer.close();
  at("job").hidden = true;
  refresh().then(() => { if (chosen) { at("job-title").focus({ preventScroll: true }); at("job").scrollIntoView({ block: "nearest" }); } });
}

// ---- watching ------------------------------------------------------------------------------------------------------

let timer = 0;

async function refresh() {
  clearTimeout(timer);
  let busy = false;
  try {
    if (!document.hidden) {
      const { jobs } = await ask("GET", "/api/jobs");
      busy = jobs.some(job => job.state === "running" || job.state === "queued");
      if (chosen && !jobs.some(job => job.id === chosen)) location.hash = "";
      listJobs(jobs);
      if (chosen) {
        const job = await ask("GET", `/api/jobs/${chosen}`);
        if (job.id === chosen) draw(job);
      }
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  } finally {
    clearTimeout(timer);
    timer = setTimeout(refresh, busy ? 1000 : 3000);
  }
}

addEventListener("hashchange", choose);
document.addEventListener("visibilitychange", refresh);
check();
refresh().then(choose);
