// One structure at a time, to turn: a button with data-view="ID" opens the view whose JSON is in the element ID.
// `equicatViewer.show(place, view)` draws a view, as equicat/report/viewer/viewer.py makes it, inside any element.
"use strict";
window.equicatViewer = (() => {
  const BOND = 1.2;            // Atoms are bonded up to this multiple of the sum of their covalent radii.
  const MAX_BONDED = 1500;     // Larger systems are drawn without bonds.
  const SHORTEST = 0.05;       // Å; shorter arrows are not drawn.
  const MAX_BUTTONS = 4;       // More states than this have a slider.
  const SIZES = { balls: e => 0.75 * e.radius, sticks: e => 0.32 * e.radius + 0.1, filled: e => e.full };
  const TURNS = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"], ArrowDown: [10, "x"] };
  const ZOOMS = { "+": 1.2, "=": 1.2, "-": 1 / 1.2 };

  let stage, parts, drawer, loading, view, shown, opener = null;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.append(...children);
    return element;
  };

  // ---- 3Dmol.js, unpacked when it is first needed ---------------------------------------------------------------

  async function unpack() {
    if (window.$3Dmol) return;  // A page with a server loads the library as a file.
    const packed = atob(document.getElementById("equicat-3dmol").textContent.trim());
    const bytes = Uint8Array.from(packed, character => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(make("script", {}, await new Response(stream).text()));
    if (!window.$3Dmol) throw new Error("the library for 3D views did not start");
  }

  // ---- the stage: one canvas with its controls, moved to the view that is open ------------------------------------

  function build() {
    const keys = "Drag or arrow keys turn, wheel or + and − zoom, 0 resets, Escape closes.";
    parts = {
      canvas: make("div", { class: "canvas", tabindex: "0", role: "img", "aria-describedby": "equicat-hint" }),
      atom: make("p", { class: "atom", "aria-hidden": "true" }),
      states: make("div", { class: "states" }),
      switches: make("div", { class: "switches" }),
      status: make("p", { class: "status", role: "status", "aria-live": "polite" }),
      hint: make("p", { class: "hint", id: "equicat-hint" }, keys),
    };
    stage = make("div", { class: "stage", role: "group" }, ...Object.values(parts));
    parts.canvas.addEventListener("keydown", press);
  }

  function press(event) {
    if (!drawer || event.ctrlKey || event.metaKey || event.altKey) return;
    if (TURNS[event.key]) drawer.rotate(...TURNS[event.key]);
    else if (ZOOMS[event.key]) drawer.zoom(ZOOMS[event.key]);
    else if (event.key === "0") frame();
    else if (event.key === "Escape" && opener) toggle(opener);
    else return;
    event.preventDefault();
  }

  const color = name => getComputedStyle(stage).getPropertyValue(name).trim();
  const point = (values, i, factor) => {
    const [x, y, z] = values.slice(3 * i, 3 * i + 3).map(value => value * factor);
    return { x, y, z };
  };
  const byte = (text, k) => parseInt(text.slice(k, k + 2), 16);
  const mixed = (a, b, k) => Math.round(0.45 * byte(a, k) + 0.55 * byte(b, k)).toString(16).padStart(2, "0");
  const pale = (hex, paper) => "#" + [1, 3, 5].map(k => mixed(hex, paper, k)).join("");

  function bonded(points) {
    const bonds = points.map(() => []);
    if (shown.style !== "sticks" || points.length > MAX_BONDED) return bonds;
    const radius = view.kinds.map(kind => view.elements[kind].radius);
    for (let i = 0; i < points.length; i++) {
      for (let j = 0; j < i; j++) {
        const distance = Math.hypot(points[i].x - points[j].x, points[i].y - points[j].y, points[i].z - points[j].z);
        if (distance < BOND * (radius[i] + radius[j])) { bonds[i].push(j); bonds[j].push(i); }
      }
    }
    return bonds;
  }

  function draw() {
    const state = view.states[shown.state], fixed = new Set(view.fixed), paper = color("--panel");
    const points = view.kinds.map((_, i) => point(state.positions, i, 0.01));
    const bonds = bonded(points);
    drawer.removeAllModels();
    drawer.removeAllShapes();
    drawer.setBackgroundColor(paper, 1);
    const model = drawer.addModel();
    model.addAtoms(points.map((p, i) => ({
      ...p, elem: view.elements[view.kinds[i]].symbol, serial: i, bonds: bonds[i], bondOrder: bonds[i].map(() => 1),
    })));
    view.elements.forEach((element, kind) => {
      for (const held of [false, true]) {
        const tint = held ? pale(element.color, paper) : element.color;
        const style = { sphere: { radius: SIZES[shown.style](element), color: tint } };
        if (shown.style === "sticks") style.stick = { radius: 0.1, color: tint };
        const predicate = ({ serial }) => view.kinds[serial] === kind && fixed.has(serial) === held;
        model.setStyle({ predicate }, style);
      }
    });
    if (view.cell && shown.cell) drawCell();
    for (const arrows of state.arrows) if (!shown.without.has(arrows.title)) drawArrows(arrows, points);
    const say = text => { parts.atom.textContent = text; };
    model.setHoverable({}, true, atom => say(describe(atom.serial)), () => say(""));
    drawer.render();
    parts.canvas.setAttribute("aria-label", `${view.name}, ${state.title}: ${view.kinds.length} atoms, ${counts()}`);
  }

  function drawCell() {
    const [a, b, c] = [0, 1, 2].map(k => point(view.cell, k, 0.01));
    const along = (axis, i, j, k) => i * a[axis] + j * b[axis] + k * c[axis];
    const corner = (...n) => ({ x: along("x", ...n), y: along("y", ...n), z: along("z", ...n) });
    for (const [i, j] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
      for (const [from, to] of [[[0, i, j], [1, i, j]], [[i, 0, j], [i, 1, j]], [[i, j, 0], [i, j, 1]]]) {
        drawer.addLine({ start: corner(...from), end: corner(...to), color: color("--soft") });
      }
    }
  }

  function drawArrows(arrows, points) {
    points.forEach((start, i) => {
      const along = point(arrows.vectors, i, 0.001 * arrows.length), length = Math.hypot(along.x, along.y, along.z);
      if (length < SHORTEST) return;
      // An arrow begins at the centre of its atom, so it is moved out of the ball.
      const out = 1 + 0.8 * SIZES[shown.style](view.elements[view.kinds[i]]) / length;
      const on = (axis, factor) => start[axis] + factor * along[axis];
      const at = factor => ({ x: on("x", factor), y: on("y", factor), z: on("z", factor) });
      const width = arrows.series === 1 ? 0.1 : 0.07;
      const shape = { radius: width, radiusRatio: 2.2, mid: Math.max(0.3, 1 - 0.35 / length) };
      drawer.addArrow({ ...shape, start: at(out - 1), end: at(out), color: color(`--series-${arrows.series}`) });
    });
  }

  const count = kind => view.kinds.filter(other => other === kind).length;
  const counts = () => view.elements.map(({ symbol }, kind) => `${count(kind)} ${symbol}`).join(", ");

  function describe(i) {
    const words = [`${view.elements[view.kinds[i]].symbol}, atom ${i}`];
    if (view.fixed?.includes(i)) words.push("fixed");
    if (view.adsorbate?.includes(i)) words.push("adsorbate");
    for (const arrows of view.states[shown.state].arrows) {
      words.push(`${arrows.title} ${(Math.hypot(...arrows.vectors.slice(3 * i, 3 * i + 3)) / 1000).toFixed(3)}`);
    }
    return words.join(" · ");
  }

  function frame() {
    drawer.zoomTo({ predicate: () => true });  // The atoms; without a selection, the cell would count too.
    const position = drawer.getView();
    drawer.setView([...position.slice(0, 4), ...view.turn]);
    drawer.zoom(0.9 * Math.min(1, parts.canvas.clientWidth / parts.canvas.clientHeight));
  }

  function go(state) {
    shown.state = state;
    draw();
    controls(false);
    parts.status.textContent = `Shows ${view.states[state].title}.`;
  }

  function choice(group, title, checked, act, type = "radio", swatch = "") {
    const input = make("input", { type, ...(type === "radio" ? { name: `equicat-${group}` } : {}) });
    input.checked = checked;
    input.addEventListener("change", () => act(input.checked));
    const mark = swatch ? [make("i", { style: `background: var(--series-${swatch})` })] : [];
    return make("label", {}, input, ...mark, make("span", {}, title));
  }

  function controls(anew) {
    const { states } = view, arrows = states[shown.state].arrows;
    if (anew) {
      parts.states.replaceChildren();
      if (states.length > MAX_BUTTONS) {
        const slider = make("input", { type: "range", min: "0", max: String(states.length - 1), "aria-label": "step" });
        const output = make("output", {}, states[0].title);
        slider.value = "0";
        slider.addEventListener("input", () => {
          go(Number(slider.value));
          output.textContent = states[shown.state].title;
        });
        parts.states.append(slider, output);
      } else if (states.length > 1) {
        const group = make("fieldset", { class: "segments" }, make("legend", {}, "state"));
        states.forEach((state, k) => group.append(choice("state", state.title, k === 0, () => go(k))));
        parts.states.append(group);
      }
    }
    if (!anew && shown.n_arrows === arrows.length) return;
    shown.n_arrows = arrows.length;
    const styles = make("fieldset", { class: "segments" }, make("legend", {}, "atoms"));
    for (const style of Object.keys(SIZES)) {
      styles.append(choice("style", style, style === shown.style, () => { shown.style = style; draw(); }));
    }
    const switches = arrows.map(({ title, series }) => choice("", title, !shown.without.has(title), on => {
      if (on) shown.without.delete(title); else shown.without.add(title);
      draw();
    }, "checkbox", series));
    if (view.cell) switches.push(choice("", "cell", shown.cell, on => { shown.cell = on; draw(); }, "checkbox"));
    if (view.fixed) switches.push(make("span", { class: "key" }, "fixed atoms are pale"));
    parts.switches.replaceChildren(styles, ...switches);
  }

  async function show(place, data) {
    stage ?? build();
    close();
    view = data;
    shown = { state: 0, style: "balls", cell: true, without: new Set(), n_arrows: -1 };
    stage.setAttribute("aria-label", `${view.name} in 3D`);
    place.append(stage);
    parts.status.textContent = "Loading the 3D view …";
    try {
      await (loading ??= unpack());
      drawer ??= window.$3Dmol.createViewer(parts.canvas, { antialias: true, cartoonQuality: 2, hoverDuration: 60 });
      if (!drawer) throw new Error("this browser has no WebGL");
      if (view !== data) return;  // Another view was opened meanwhile.
      drawer.resize();
      draw();
      frame();
      controls(true);
      parts.status.textContent = `${view.name}: ${view.states[0].title}, ${view.kinds.length} atoms (${counts()}).`;
    } catch (error) {
      close();
      place.append(make("p", { class: "status", role: "status" }, `No 3D view: ${error.message}.`));
    }
  }

  function close() {
    stage?.remove();
    if (!opener) return;
    opener.setAttribute("aria-expanded", "false");
    opener.textContent = "Turn in 3D";
    opener.closest(".turnable").classList.remove("open");
    opener = null;
  }

  function toggle(button) {
    const again = opener === button;
    close();
    if (again) return button.focus();
    const place = button.closest(".turnable");
    show(place, JSON.parse(document.getElementById(button.dataset.view).textContent));
    opener = button;
    button.setAttribute("aria-expanded", "true");
    button.textContent = "Back to the picture";
    place.classList.add("open");
  }

  document.addEventListener("click", event => {
    const button = event.target.closest?.("button[data-view]");
    if (button) toggle(button);
  });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", () => { if (stage?.isConnected && drawer) draw(); });
  return { show, close };
})();
