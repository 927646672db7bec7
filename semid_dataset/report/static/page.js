"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  if (!data.items) return;

  // --- what was packed ---------------------------------------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const shorts = (text) => new Uint16Array(bytes(text));
  const { levels, keys, titles } = data;
  const codes = shorts(data.codes); // of the sample, sorted: every prefix is one run of it
  const sampled = keys.length;
  const whole = sampled === data.items;
  const first = { codes: shorts(data.first.codes), counts: new Uint32Array(bytes(data.first.counts)) };
  const second = data.second && { codes: shorts(data.second.codes), counts: new Uint32Array(bytes(data.second.counts)) };
  const plain = new Intl.NumberFormat("en-US");
  const say = (n) => plain.format(n);

  // --- the tree: a node is a prefix, and the run of the sample that has it --------------------

  // node: {prefix, low, high, count, exact}
  const root = { prefix: [], low: 0, high: sampled, count: data.items, exact: true };

  // First position in low…high whose code at `depth` is at least `code`.
  function seek(low, high, depth, code) {
    while (low < high) {
      const middle = (low + high) >> 1;
      if (codes[middle * levels + depth] < code) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  const nodeOf = (parent, code, count) => {
    const depth = parent.prefix.length;
    const low = seek(parent.low, parent.high, depth, code);
    const high = seek(low, parent.high, depth, code + 1);
    return { prefix: [...parent.prefix, code], low, high, count: count ?? high - low, exact: whole || count != null };
  };

  function childrenOf(node) {
    if (node.children) return node.children;
    const depth = node.prefix.length;
    const found = [];
    if (depth === levels) return (node.children = found);
    if (depth === 0) {
      first.codes.forEach((code, k) => found.push(nodeOf(node, code, first.counts[k])));
    } else if (depth === 1 && second) {
      const own = node.prefix[0];
      let k = 0;
      for (let step = second.counts.length, low = 0; step > 0; ) {
        const half = step >> 1;
        if (second.codes[2 * (low + half)] < own) { low += half + 1; step -= half + 1; } else step = half;
        k = low;
      }
      for (; k < second.counts.length && second.codes[2 * k] === own; k++)
        found.push(nodeOf(node, second.codes[2 * k + 1], second.counts[k]));
    } else {
      for (let at = node.low; at < node.high; ) {
        const code = codes[at * levels + depth];
        const next = seek(at, node.high, depth, code + 1);
        found.push({ prefix: [...node.prefix, code], low: at, high: next, count: next - at, exact: whole });
        at = next;
      }
    }
    return (node.children = found);
  }

  function nodeAt(prefix) {
    let node = root;
    for (const code of prefix) {
      const next = childrenOf(node).find((child) => child.prefix[node.prefix.length] === code);
      if (!next) break;
      node = next;
    }
    return node;
  }

  // --- words that set a node's titles apart from all others ----------------------------------

  const HAN = /\p{Script=Han}/u;
  function wordsOf(title) {
    const words = new Set();
    for (const run of title.toLowerCase().match(/[\p{L}][\p{L}\p{N}']*/gu) || []) {
      if (HAN.test(run)) for (let k = 0; k + 2 <= run.length; k++) words.add(run.slice(k, k + 2));
      else if (run.length > 2) words.add(run);
    }
    return words;
  }
  let tokens = null;
  let documents = null;
  function readTitles() {
    tokens = titles.map((title) => [...wordsOf(title)]);
    documents = new Map();
    for (const list of tokens) for (const word of list) documents.set(word, (documents.get(word) || 0) + 1);
  }
  function topic(node, most = 3) {
    if (!titles || node.low === node.high || !node.prefix.length) return [];
    if (node.words) return node.words.slice(0, most);
    if (!tokens) readTitles();
    const inside = new Map();
    const size = node.high - node.low;
    for (let k = node.low; k < node.high; k++)
      for (const word of tokens[k]) inside.set(word, (inside.get(word) || 0) + 1);
    const scored = [];
    for (const [word, count] of inside) {
      if (size > 3 && count < 2) continue;
      if (count * sampled < 2 * size * documents.get(word)) continue; // "for" is everywhere
      // How many more of its items have the word than chance would give, in logs.
      scored.push([count * Math.log((count * sampled) / (size * documents.get(word))), word]);
    }
    scored.sort((a, b) => b[0] - a[0] || (a[1] < b[1] ? -1 : 1));
    node.words = scored.slice(0, 4).filter((pair) => pair[0] > 0).map((pair) => pair[1]);
    return node.words.slice(0, most);
  }
  const describe = (node) => {
    if (node.high - node.low === 1 && titles && titles[node.low]) return titles[node.low];
    return topic(node).join(" · ");
  };

  // --- colours: codes that lie near one another on the map get similar ones -------------------

  const places = data.map && shorts(data.map.places);
  const owners = data.map && shorts(data.map.codes);
  const hues = new Map();
  {
    const present = [...first.codes];
    let order = present;
    if (places) {
      const sums = new Map(present.map((code) => [code, [0, 0, 0]]));
      for (let k = 0; k < owners.length; k++) {
        const sum = sums.get(owners[k]);
        sum[0] += places[2 * k]; sum[1] += places[2 * k + 1]; sum[2]++;
      }
      const angle = (code) => {
        const [x, y, n] = sums.get(code);
        return n ? Math.atan2(y / n - 32768, x / n - 32768) : 0;
      };
      const angles = new Map(present.map((code) => [code, angle(code)]));
      order = present.slice().sort((a, b) => angles.get(a) - angles.get(b) || a - b);
    }
    order.forEach((code, k) => hues.set(code, [(k / order.length) * 360, k]));
  }
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const dark = () => night.matches && !printing;
  function tint(code, depth = 0) {
    const [hue, rank] = hues.get(code) || [0, 0];
    const light = (dark() ? [58, 68, 50][rank % 3] : [44, 54, 36][rank % 3]) + (dark() ? -9 : 11) * depth;
    return `hsl(${hue.toFixed(0)} ${62 - 9 * depth}% ${light}%)`;
  }
  const ink = (name) => {
    if (printing) return { "--ink": "#000", "--card": "#fff", "--soft": "#444", "--rule": "#bbb" }[name];
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  };

  function prepare(canvas, height) {
    const width = canvas.clientWidth || 300;
    const ratio = Math.min(window.devicePixelRatio || 1, 3);
    const tall = height ?? canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(tall * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, tall);
    return [pen, width, tall];
  }

  // --- sunburst ------------------------------------------------------------------------------

  let focus = root;
  const sun = $("sun");
  // Of a sample, only the first two levels have true counts to draw.
  const ringsOf = (node) => Math.max(1, Math.min(levels - node.prefix.length, whole ? 3 : 2 - node.prefix.length));
  let arcs = [];

  function drawSun() {
    sun.style.aspectRatio = "1";
    const [pen, width] = prepare(sun, sun.clientWidth || 300);
    const middle = width / 2;
    const hole = width * 0.15;
    const rings = ringsOf(focus);
    const step = (middle - 2 - hole) / rings;
    arcs = [];
    const paper = ink("--card");
    const place = (node, from, to, ring) => {
      const children = childrenOf(node);
      if (ring === rings || !children.length) return;
      let ordered = children;
      if (!node.prefix.length) ordered = children.slice().sort((a, b) => hues.get(a.prefix[0])[0] - hues.get(b.prefix[0])[0]);
      const total = children.reduce((sum, child) => sum + child.count, 0);
      let at = from;
      if (ring) { // what is too thin to be drawn by itself still shows as a ring
        pen.beginPath();
        pen.arc(middle, middle, hole + ring * step + 0.5, from - Math.PI / 2, to - Math.PI / 2);
        pen.arc(middle, middle, hole + (ring + 1) * step - 0.5, to - Math.PI / 2, from - Math.PI / 2, true);
        pen.closePath();
        pen.fillStyle = tint(node.prefix[0], ring * 0.8);
        pen.fill();
      }
      for (const child of ordered) {
        const next = at + ((to - from) * child.count) / total;
        const wide = (next - at) * (hole + ring * step);
        if (wide > 0.6) {
          arcs.push({ node: child, from: at, to: next, ring });
          pen.beginPath();
          pen.arc(middle, middle, hole + ring * step + 0.5, at - Math.PI / 2, next - Math.PI / 2);
          pen.arc(middle, middle, hole + (ring + 1) * step - 0.5, next - Math.PI / 2, at - Math.PI / 2, true);
          pen.closePath();
          // Inside a first code, neighbours are told apart by lightness alone.
          pen.fillStyle = tint(child.prefix[0], ring * 0.8 + (focus.prefix.length ? 0.7 * (child.prefix.at(-1) % 3) : 0));
          pen.fill();
          if (wide > 2.5) { pen.strokeStyle = paper; pen.lineWidth = 0.7; pen.stroke(); }
        }
        if (wide > 0.05) place(child, at, next, ring + 1);
        at = next;
      }
    };
    place(focus, 0, 2 * Math.PI, 0);
    // Names where there is room: read along the radius.
    pen.textBaseline = "middle";
    for (const arc of arcs) {
      const inner = hole + arc.ring * step;
      const wide = (arc.to - arc.from) * (inner + step / 2);
      if (wide < 15) continue;
      const turn = (arc.from + arc.to) / 2 - Math.PI / 2;
      const flip = Math.cos(turn) < 0;
      const word = topic(arc.node, 1)[0];
      const code = String(arc.node.prefix.at(-1));
      pen.font = "600 11px system-ui, sans-serif";
      const fits = (text) => pen.measureText(text).width <= step - 8;
      const text = [word ? `${code} ${word}` : code, word || code, code].find(fits) || "";
      pen.save();
      pen.translate(middle, middle);
      pen.rotate(flip ? turn + Math.PI : turn);
      pen.textAlign = flip ? "right" : "left";
      pen.lineWidth = 2.5;
      pen.strokeStyle = dark() ? "#000a" : "#fffb";
      pen.fillStyle = dark() ? "#fff" : "#000";
      pen.strokeText(text, (flip ? -1 : 1) * (inner + 5), 0);
      pen.fillText(text, (flip ? -1 : 1) * (inner + 5), 0);
      pen.restore();
    }
    pen.textAlign = "center";
    pen.fillStyle = ink("--ink");
    pen.font = "650 15px system-ui, sans-serif";
    pen.fillText(focus.prefix.length ? focus.prefix.join("-") : "all", middle, middle - 8);
    pen.fillStyle = ink("--soft");
    pen.font = "12px system-ui, sans-serif";
    pen.fillText(say(focus.count), middle, middle + 10);
    if (focus.prefix.length) pen.fillText("↩ back", middle, middle + 27);
  }

  function arcAt(event) {
    const box = sun.getBoundingClientRect();
    const x = event.clientX - box.left - box.width / 2;
    const y = event.clientY - box.top - box.height / 2;
    const far = Math.hypot(x, y);
    const hole = box.width * 0.15;
    if (far < hole) return "middle";
    const rings = ringsOf(focus);
    const ring = Math.floor((far - hole) / ((box.width / 2 - 2 - hole) / rings));
    const turn = (Math.atan2(y, x) + Math.PI * 2.5) % (2 * Math.PI);
    for (let inner = Math.min(ring, rings - 1); inner >= 0; inner--) {
      const arc = arcs.find((one) => one.ring === inner && one.from <= turn && turn < one.to);
      if (arc) return arc;
    }
    return null;
  }
  const named = (node) => {
    const about = describe(node);
    const count = node.exact ? `${say(node.count)} item${node.count === 1 ? "" : "s"}` : `${say(node.count)} in the sample`;
    return `${node.prefix.join("-") || "all"}: ${count}${about ? `, ${about}` : ""}`;
  };
  sun.addEventListener("mousemove", (event) => {
    const arc = arcAt(event);
    $("sun-tip").textContent = arc && arc !== "middle" ? named(arc.node) : focus.prefix.length ? named(focus) : "";
  });
  sun.addEventListener("click", (event) => {
    const arc = arcAt(event);
    if (arc === "middle") go(nodeAt(focus.prefix.slice(0, -1)));
    else if (arc) go(arc.node);
  });

  // --- the list: says the same without colour, by keyboard and on paper ------------------------

  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text != null) element.textContent = text;
    return element;
  };
  const PAGE = 24;

  function fill(list, entries, build, from = 0) {
    entries.slice(from, from + PAGE).forEach((entry) => list.append(build(entry)));
    const left = entries.length - from - PAGE;
    if (left > 0) {
      const more = make("button", "more", `${say(left)} more`);
      more.addEventListener("click", () => { item.remove(); fill(list, entries, build, from + PAGE); });
      const item = make("li");
      item.append(more);
      list.append(item);
    }
  }

  function itemOf(at) {
    const item = make("li", "item");
    item.append(make("span", "id", keys[at]), document.createTextNode(titles ? titles[at] : ""));
    return item;
  }

  function contents(node) {
    const list = make("ul");
    const children = childrenOf(node);
    const few = node.high - node.low <= 8 && node.count === node.high - node.low;
    if (!children.length || few) {
      fill(list, Array.from({ length: node.high - node.low }, (_, k) => node.low + k), itemOf);
      if (node.low === node.high) list.append(make("li", "item none", "none of its items is in the sample"));
      else if (node.count > node.high - node.low) list.append(make("li", "item none", "and others that are not in the sample"));
      return list;
    }
    if (node.prefix.length) {
      // A few items from all over the node.
      const shown = Math.min(4, node.high - node.low);
      for (let k = 0; k < shown; k++) list.append(itemOf(node.low + Math.floor(((k + 0.5) * (node.high - node.low)) / shown)));
    }
    const ordered = children.slice().sort((a, b) => b.count - a.count || a.prefix.at(-1) - b.prefix.at(-1));
    fill(list, ordered, rowOf);
    return list;
  }

  function rowOf(node) {
    const item = make("li");
    const row = make("div", "row");
    const open = make("button", "open");
    open.type = "button";
    open.setAttribute("aria-expanded", "false");
    const code = make("span", "code", node.prefix.length > 1 ? `…-${node.prefix.at(-1)}` : node.prefix[0]);
    code.style.setProperty("--tint", tint(node.prefix[0]));
    const count = make("span", "count", (node.exact ? "" : "≥ ") + say(node.count));
    open.append(make("span", "twist", "▸"), code, count, make("span", "words", describe(node)));
    open.setAttribute("aria-label", named(node));
    open.addEventListener("click", () => {
      const opened = open.getAttribute("aria-expanded") === "true";
      open.setAttribute("aria-expanded", String(!opened));
      if (opened) item.lastChild.remove();
      else item.append(contents(node));
    });
    row.append(open);
    if (node.prefix.length < levels && node.count > 1) {
      const zoom = make("button", "zoom", "⊕");
      zoom.type = "button";
      zoom.title = "Show it in the sunburst";
      zoom.setAttribute("aria-label", `Go into ${node.prefix.join("-")}`);
      zoom.addEventListener("click", () => go(node));
      row.append(zoom);
    }
    item.append(row);
    return item;
  }

  function drawList() {
    const path = $("path");
    path.replaceChildren();
    for (let depth = 0; depth <= focus.prefix.length; depth++) {
      if (depth) path.append(make("span", "soft", "›"));
      const step = make("button", "", depth ? String(focus.prefix[depth - 1]) : "all");
      step.type = "button";
      const prefix = focus.prefix.slice(0, depth);
      if (depth === focus.prefix.length) step.setAttribute("aria-current", "location");
      step.addEventListener("click", () => go(nodeAt(prefix)));
      path.append(step);
    }
    const about = describe(focus);
    path.append(make("span", "soft", `${say(focus.count)}${focus.exact ? "" : "+"} items${about ? `: ${about}` : ""}`));
    const list = contents(focus);
    list.id = "tree-list";
    list.className = "tree";
    $("tree-list").replaceWith(list);
  }

  function go(node) {
    focus = node;
    drawSun();
    drawList();
    $("sun-tip").textContent = node.prefix.length ? named(node) : "Point at a sector, or tap it.";
  }

  $("find").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    if (!wanted) return drawList();
    const list = make("ul", "tree");
    list.id = "tree-list";
    const found = [];
    for (let k = 0; k < sampled && found.length < 200; k++)
      if (keys[k].toLowerCase().includes(wanted) || (titles && titles[k].toLowerCase().includes(wanted))) found.push(k);
    fill(list, found, (at) => {
      const item = itemOf(at);
      const prefix = [...codes.slice(at * levels, (at + 1) * levels)];
      const where = make("button", "more", prefix.join("-"));
      where.type = "button";
      where.addEventListener("click", () => { $("find").value = ""; go(nodeAt(prefix.slice(0, Math.max(1, levels - 2)))); });
      item.append(where);
      return item;
    });
    if (!found.length) list.append(make("li", "item none", whole ? "no such item" : "no such item in the sample"));
    $("tree-list").replaceWith(list);
  });

  // --- map -----------------------------------------------------------------------------------

  const map = $("map-canvas");
  function drawMap() {
    if (!map || !places) return;
    const [pen, width, height] = prepare(map);
    const pad = 10;
    const spot = (k) => [pad + (places[2 * k] / 65535) * (width - 2 * pad), pad + (1 - places[2 * k + 1] / 65535) * (height - 2 * pad)];
    const dot = owners.length > 4000 ? 1.7 : 2.6;
    pen.globalAlpha = 0.72;
    for (let k = 0; k < owners.length; k++) {
      const [x, y] = spot(k);
      pen.fillStyle = tint(owners[k]);
      pen.beginPath();
      pen.arc(x, y, dot, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.globalAlpha = 1;
    // Names of large codes at the middle of their dots, as many as do not touch.
    const own = new Map();
    for (let k = 0; k < owners.length; k++) {
      if (!own.has(owners[k])) own.set(owners[k], []);
      own.get(owners[k]).push(spot(k));
    }
    const taken = [];
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const wanted = [...own].sort((a, b) => b[1].length - a[1].length);
    for (const [code, spots] of wanted) {
      if (taken.length >= (width > 600 ? 26 : 12)) break;
      const middle = (axis) => spots.map((spot) => spot[axis]).sort((a, b) => a - b)[spots.length >> 1];
      const text = [code, ...topic(nodeAt([code]), 1)].join(" ");
      const wide = pen.measureText(text).width;
      const x = Math.min(Math.max(middle(0), wide / 2 + 4), width - wide / 2 - 4);
      const y = Math.min(Math.max(middle(1), 12), height - 12);
      if (taken.some(([a, b, w]) => Math.abs(a - x) < (w + wide) / 2 + 6 && Math.abs(b - y) < 17)) continue;
      taken.push([x, y, wide]);
      pen.lineWidth = 3.5;
      pen.lineJoin = "round";
      pen.strokeStyle = ink("--card");
      pen.strokeText(text, x, y);
      pen.fillStyle = ink("--ink");
      pen.fillText(text, x, y);
    }
  }
  function pointAt(event) {
    const box = map.getBoundingClientRect();
    const x = ((event.clientX - box.left - 10) / (box.width - 20)) * 65535;
    const y = (1 - (event.clientY - box.top - 10) / (box.height - 20)) * 65535;
    let best = -1;
    let least = (65535 * 14) / box.width;
    for (let k = 0; k < owners.length; k++) {
      const far = Math.hypot(places[2 * k] - x, (places[2 * k + 1] - y) * (box.height / box.width));
      if (far < least) { least = far; best = k; }
    }
    return best;
  }
  const mapTip = (event) => {
    const k = pointAt(event);
    let text = "";
    if (k >= 0 && data.map.whole)
      text = `${keys[k]} is ${[...codes.slice(k * levels, (k + 1) * levels)].join("-")}${titles ? `: ${titles[k]}` : ""}. Code `;
    else if (k >= 0) text = "Code ";
    $("map-tip").textContent = k >= 0 ? text + named(nodeAt([owners[k]])) : "";
  };
  if (map) {
    map.addEventListener("mousemove", mapTip);
    map.addEventListener("click", mapTip);
  }

  // --- begin, and again when the window or the light changes -----------------------------------

  const redraw = () => { drawSun(); drawMap(); };
  go(root);
  drawMap();
  let width = window.innerWidth;
  let waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return; // a phone's address bar
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 120);
  });
  night.addEventListener("change", () => { redraw(); drawList(); });
  window.addEventListener("beforeprint", () => { printing = true; redraw(); });
  window.addEventListener("afterprint", () => { printing = false; redraw(); });
})();
