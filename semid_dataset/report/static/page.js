"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  if (!data.items) return;

  // --- what was packed ---------------------------------------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const shorts = (text) => new Uint16Array(bytes(text));
  const { levels, keys, titles, words } = data;
  const codes = shorts(data.codes); // of the sample, sorted: every prefix is one run of it
  const sampled = keys.length;
  const whole = sampled === data.items;
  const first = { codes: shorts(data.first.codes), counts: new Uint32Array(bytes(data.first.counts)) };
  const second = data.second && { codes: shorts(data.second.codes), counts: new Uint32Array(bytes(data.second.counts)) };
  const plain = new Intl.NumberFormat("en-US");
  const count = (n) => plain.format(n);
  const say = (name, fields = {}) => words[name].replace(/\{(\w+)\}/g, (_, field) => fields[field]);
  const sayItems = (n) => (n === 1 ? say("item") : say("items", { n: count(n) }));
  const idOf = (at) => [...codes.subarray(at * levels, (at + 1) * levels)];

  // --- the tree: a node is a prefix, and the run of the sample that has it --------------------

  // node: {prefix, low, high, count, exact, parent}
  const root = { prefix: [], low: 0, high: sampled, count: data.items, exact: true, parent: null };

  // First position in low…high whose code at `depth` is at least `code`.
  function seek(low, high, depth, code) {
    while (low < high) {
      const middle = (low + high) >> 1;
      if (codes[middle * levels + depth] < code) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function nodeOf(parent, code, counted) {
    const depth = parent.prefix.length;
    const low = seek(parent.low, parent.high, depth, code);
    const high = seek(low, parent.high, depth, code + 1);
    return { prefix: [...parent.prefix, code], low, high, count: counted ?? high - low, exact: whole || counted != null, parent };
  }

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
        const child = nodeOf(node, codes[at * levels + depth]);
        found.push(child);
        at = child.high;
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

  // --- what a node is about: class-based TF-IDF of its titles, as in _topics.py ---------------

  const HAN = /[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]/;
  function wordsOf(title) {
    const found = [];
    const said = title.endsWith("…") ? title.slice(0, Math.max(title.lastIndexOf(" "), 0)) : title; // not half a word
    for (const run of said.toLowerCase().match(/\p{L}[\p{L}\p{N}_']*/gu) || []) {
      const letters = [...run];
      if (HAN.test(run)) for (let k = 0; k + 2 <= letters.length; k++) found.push(letters[k] + letters[k + 1]);
      else if (letters.length > 2) found.push(run);
    }
    return found;
  }
  let tokens = null;
  const everywhere = new Map();
  const classes = []; // prefixes in the sample, by depth
  let total = 0;
  function readTitles() {
    tokens = titles.map(wordsOf);
    for (const list of tokens)
      for (const word of list) { everywhere.set(word, (everywhere.get(word) || 0) + 1); total++; }
    for (let depth = 1; depth <= levels; depth++) {
      let runs = 0;
      for (let at = 0; at < sampled; at++) {
        let same = at > 0;
        for (let level = 0; same && level < depth; level++) same = codes[at * levels + level] === codes[(at - 1) * levels + level];
        runs += !same;
      }
      classes[depth] = runs;
    }
  }
  function topic(node, most = 5) {
    if (!titles || node.low === node.high || !node.prefix.length) return [];
    if (node.words) return node.words.slice(0, most);
    if (!tokens) readTitles();
    const inside = new Map();
    const holders = new Map();
    const size = node.high - node.low;
    let own = 0;
    for (let k = node.low; k < node.high; k++) {
      for (const word of tokens[k]) { inside.set(word, (inside.get(word) || 0) + 1); own++; }
      for (const word of new Set(tokens[k])) holders.set(word, (holders.get(word) || 0) + 1);
    }
    const average = total / classes[node.prefix.length];
    const known = new Set(node.parent && node.parent.prefix.length ? topic(node.parent) : []);
    const scored = [];
    for (const [word, times] of inside) {
      if (size > 3 && holders.get(word) < 2) continue;
      if (classes[node.prefix.length] > 1 && times * total < 2 * own * everywhere.get(word)) continue;
      scored.push([(times / own) * Math.log1p(average / everywhere.get(word)), word]);
    }
    scored.sort((a, b) => b[0] - a[0] || (a[1] < b[1] ? -1 : 1));
    const fresh = scored.filter((pair) => !known.has(pair[1])); // what its parent says need not be said again
    const best = fresh.length ? fresh : scored;
    node.words = best.slice(0, 5).filter((pair) => pair[0] >= 0.1 * best[0][0]).map((pair) => pair[1]);
    return node.words.slice(0, most);
  }
  const describe = (node) => {
    if (node.high - node.low === 1 && titles && titles[node.low]) return titles[node.low];
    return topic(node).join(" · ");
  };

  // --- colours: codes that lie near one another on the map get similar ones -------------------

  const map = data.map && {
    places: shorts(data.map.places),
    nearest: shorts(data.map.nearest),
    distances: shorts(data.map.distances),
    each: data.map.each,
    at: data.map.at ? shorts(data.map.at) : Uint16Array.from({ length: sampled }, (_, k) => k),
  };
  const pointOf = new Map(); // of a sampled item, which point of the map
  if (map) map.at.forEach((at, point) => pointOf.set(at, point));
  const hues = new Map();
  {
    const present = [...first.codes];
    let order = present;
    if (map) {
      const sums = new Map(present.map((code) => [code, [0, 0, 0]]));
      map.at.forEach((at, point) => {
        const sum = sums.get(codes[at * levels]);
        sum[0] += map.places[2 * point]; sum[1] += map.places[2 * point + 1]; sum[2]++;
      });
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

  // --- what is chosen: a prefix, what was searched for, an item --------------------------------

  let focus = root;
  let hits = null; // of a search: {list, before}, before[k] = hits among the first k of the sample
  let picked = -1; // place in the sample of the item that is shown
  const hitsIn = (node) => (hits ? hits.before[node.high] - hits.before[node.low] : 0);
  const isHit = (at) => hits.before[at + 1] > hits.before[at];

  function remember(hash) {
    if (location.hash === hash) return;
    try { history.pushState(null, "", hash); } catch { /* a page inside of another one has no address of its own */ }
  }

  // --- sunburst ------------------------------------------------------------------------------

  const sun = $("sun");
  let aimed = null; // the sector that the keyboard is at
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
    const ring = (from, to, depth, inset = 0.5) => {
      pen.beginPath();
      pen.arc(middle, middle, hole + depth * step + inset, from - Math.PI / 2, to - Math.PI / 2);
      pen.arc(middle, middle, hole + (depth + 1) * step - inset, to - Math.PI / 2, from - Math.PI / 2, true);
      pen.closePath();
    };
    const place = (node, from, to, depth) => {
      const children = childrenOf(node);
      if (depth === rings || !children.length) return;
      let ordered = children;
      if (!node.prefix.length) ordered = children.slice().sort((a, b) => hues.get(a.prefix[0])[0] - hues.get(b.prefix[0])[0]);
      const sum = children.reduce((all, child) => all + child.count, 0);
      let at = from;
      if (depth) { // what is too thin to be drawn by itself still shows as a ring
        ring(from, to, depth);
        pen.fillStyle = tint(node.prefix[0], depth * 0.8);
        pen.globalAlpha = hits && !hitsIn(node) ? 0.12 : 1;
        pen.fill();
      }
      for (const child of ordered) {
        const next = at + ((to - from) * child.count) / sum;
        const wide = (next - at) * (hole + depth * step);
        if (wide > 0.6) {
          arcs.push({ node: child, from: at, to: next, ring: depth });
          ring(at, next, depth);
          // Inside a first code, neighbours are told apart by lightness alone.
          pen.fillStyle = tint(child.prefix[0], depth * 0.8 + (focus.prefix.length ? 0.7 * (child.prefix.at(-1) % 3) : 0));
          pen.globalAlpha = 1;
          if (hits && !hitsIn(child)) { pen.fillStyle = paper; pen.fill(); pen.fillStyle = tint(child.prefix[0], depth * 0.8); pen.globalAlpha = 0.12; }
          pen.fill();
          pen.globalAlpha = 1;
          if (wide > 2.5) { pen.strokeStyle = paper; pen.lineWidth = 0.7; pen.stroke(); }
        }
        if (wide > 0.05) place(child, at, next, depth + 1);
        at = next;
      }
    };
    place(focus, 0, 2 * Math.PI, 0);
    pen.globalAlpha = 1;
    const target = aimed && arcs.find((arc) => arc.node === aimed);
    if (target) {
      ring(target.from, target.to, target.ring, 1.5);
      pen.strokeStyle = ink("--ink"); pen.lineWidth = 3; pen.stroke();
    }
    // Names where there is room: read along the radius.
    pen.textBaseline = "middle";
    for (const arc of arcs) {
      const inner = hole + arc.ring * step;
      const wide = (arc.to - arc.from) * (inner + step / 2);
      if (wide < 15 || (hits && !hitsIn(arc.node))) continue;
      const turn = (arc.from + arc.to) / 2 - Math.PI / 2;
      const flip = Math.cos(turn) < 0;
      const about = topic(arc.node);
      const code = String(arc.node.prefix.at(-1));
      pen.font = "600 11px system-ui, sans-serif";
      const fits = (text) => text && pen.measureText(text).width <= step - 8;
      const text = [[code, ...about.slice(0, 2)].join(" "), [code, about[0]].join(" "), about[0], code].find(fits) || "";
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
    pen.fillText(focus.prefix.length ? focus.prefix.join("-") : say("all"), middle, middle - 8);
    pen.fillStyle = ink("--soft");
    pen.font = "12px system-ui, sans-serif";
    pen.fillText(count(focus.count), middle, middle + 10);
    if (focus.prefix.length) pen.fillText(`↩ ${say("back")}`, middle, middle + 27);
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
    const counted = node.exact ? sayItems(node.count) : say("sample", { n: count(node.count) });
    const matched = hits ? `, ${say("hits", { n: count(hitsIn(node)) })}` : "";
    return `${node.prefix.join("-") || say("all")}: ${counted}${matched}${about ? `, ${about}` : ""}`;
  };
  const out = () => go(nodeAt(focus.prefix.slice(0, -1)));
  sun.addEventListener("mousemove", (event) => {
    const arc = arcAt(event);
    $("sun-tip").textContent = arc && arc !== "middle" ? named(arc.node) : focus.prefix.length ? named(focus) : "";
  });
  sun.addEventListener("click", (event) => {
    const arc = arcAt(event);
    if (arc === "middle") out();
    else if (arc) go(arc.node);
  });
  sun.addEventListener("keydown", (event) => {
    const here = arcs.find((arc) => arc.node === aimed);
    const aim = (arc) => { if (arc) { aimed = arc.node; drawSun(); $("sun-tip").textContent = named(aimed); } };
    const open = (arc) => !hits || hitsIn(arc.node); // of a search, sectors with what was found
    const begin = () => aim(arcs.find((arc) => arc.ring === 0 && open(arc)));
    const side = (way) => {
      const same = arcs.filter((arc) => arc.ring === here.ring && (arc === here || open(arc))).sort((a, b) => a.from - b.from);
      aim(same[(same.indexOf(here) + way + same.length) % same.length]);
    };
    const keys = {
      ArrowRight: () => (here ? side(1) : begin()),
      ArrowLeft: () => (here ? side(-1) : begin()),
      ArrowUp: () => (here ? aim(arcs.find((arc) => arc.ring === here.ring + 1 && arc.from >= here.from - 1e-9 && arc.from < here.to && open(arc))) : begin()),
      ArrowDown: () => here && aim(arcs.find((arc) => arc.ring === here.ring - 1 && arc.from <= here.from + 1e-9 && here.from < arc.to)),
      Enter: () => aimed && (aimed.high - aimed.low === 1 && aimed.count === 1 ? show(aimed.low) : go(aimed)),
      " ": () => keys.Enter(),
      Escape: () => (focus.prefix.length ? out() : ((aimed = null), drawSun())),
      Backspace: () => focus.prefix.length && out(),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  // --- the list: says the same without colour, by keyboard and on paper ------------------------

  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text != null) element.textContent = text;
    return element;
  };
  const button = (kind, text, act) => {
    const element = make("button", kind, text);
    element.type = "button";
    element.addEventListener("click", act);
    return element;
  };
  const PAGE = 24;

  function fill(list, entries, build, from = 0) {
    entries.slice(from, from + PAGE).forEach((entry) => list.append(build(entry)));
    const left = entries.length - from - PAGE;
    if (left > 0) {
      const item = make("li");
      item.append(button("more", say("more", { n: count(left) }), () => {
        item.remove();
        const before = list.children.length;
        fill(list, entries, build, from + PAGE);
        list.children[before]?.querySelector("button")?.focus();
      }));
      list.append(item);
    }
  }

  function titled(at) { // a title may be in any script, and must not turn what stands beside it
    return make("bdi", "", titles && titles[at] ? titles[at] : "");
  }
  function link(at) {
    const open = button("link", null, () => show(at));
    open.append(make("span", "id", keys[at]), titled(at));
    return open;
  }
  function itemOf(at) {
    const item = make("li", hits && isHit(at) ? "item hit" : "item");
    item.append(link(at));
    return item;
  }

  function contents(node) {
    const list = make("ul");
    const children = childrenOf(node).filter((child) => !hits || hitsIn(child));
    const own = Array.from({ length: node.high - node.low }, (_, k) => node.low + k).filter((at) => !hits || isHit(at));
    const few = hits ? own.length <= 8 : node.high - node.low <= 8 && node.count === node.high - node.low;
    if (!children.length || few) {
      fill(list, own, itemOf);
      if (node.low === node.high) list.append(make("li", "item none", say("noneSampled")));
      else if (node.count > node.high - node.low) list.append(make("li", "item none", say("others")));
      return list;
    }
    if (node.prefix.length) {
      // A few items from all over the node.
      const shown = Math.min(4, own.length);
      for (let k = 0; k < shown; k++) list.append(itemOf(own[Math.floor(((k + 0.5) * own.length) / shown)]));
    }
    const weight = (child) => (hits ? hitsIn(child) : child.count);
    const ordered = children.slice().sort((a, b) => weight(b) - weight(a) || a.prefix.at(-1) - b.prefix.at(-1));
    fill(list, ordered, rowOf);
    return list;
  }

  function rowOf(node) {
    const item = make("li");
    const row = make("div", "row");
    const open = button("open", null, () => {
      const opened = open.getAttribute("aria-expanded") === "true";
      open.setAttribute("aria-expanded", String(!opened));
      if (opened) item.lastChild.remove();
      else item.append(contents(node));
    });
    open.setAttribute("aria-expanded", "false");
    const code = make("span", "code", node.prefix.length > 1 ? `…-${node.prefix.at(-1)}` : node.prefix[0]);
    code.style.setProperty("--tint", tint(node.prefix[0]));
    const counted = make("span", "count", hits ? `${count(hitsIn(node))}/${count(node.high - node.low)}` : (node.exact ? "" : "≥ ") + count(node.count));
    const about = make("span", "words");
    about.append(make("bdi", "", describe(node)));
    const twist = make("span", "twist", "▸");
    twist.setAttribute("aria-hidden", "true");
    open.append(twist, code, counted, about);
    row.append(open);
    if (node.prefix.length < levels && node.count > 1) {
      const zoom = button("zoom", "⊕", () => go(node));
      zoom.title = say("show");
      zoom.setAttribute("aria-label", say("goInto", { prefix: node.prefix.join("-") }));
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
      const prefix = focus.prefix.slice(0, depth);
      const step = button("", depth ? String(focus.prefix[depth - 1]) : say("all"), () => go(nodeAt(prefix)));
      if (depth === focus.prefix.length) step.setAttribute("aria-current", "location");
      path.append(step);
    }
    const about = describe(focus);
    path.append(make("span", "soft", `${sayItems(focus.count)}${focus.exact ? "" : "+"}${about ? `: ${about}` : ""}`));
    let list = contents(focus);
    if (hits && focus === root) {
      list = make("ul");
      const found = childrenOf(root).filter(hitsIn).sort((a, b) => hitsIn(b) - hitsIn(a) || a.prefix[0] - b.prefix[0]);
      found.slice(0, 8).forEach((node) => list.append(rowOf(node)));
      fill(list, hits.list, itemOf);
    }
    list.id = "tree-list";
    list.className = "tree";
    $("tree-list").replaceWith(list);
  }

  // Shows a prefix: the sunburst begins there, the list opens there, the map is bright there.
  function go(node, remembered = true) {
    focus = node;
    aimed = null;
    drawSun();
    drawList();
    drawMap();
    $("sun-tip").textContent = node.prefix.length ? named(node) : say("point");
    if (remembered) remember(node.prefix.length ? `#prefix=${node.prefix.join("-")}` : "#tree");
  }

  // --- search --------------------------------------------------------------------------------

  function lightUp(wanted) { // in tree and map
    const list = [];
    const before = new Uint32Array(sampled + 1);
    for (let k = 0; k < sampled; k++) {
      const found = wanted(k);
      if (found) list.push(k);
      before[k + 1] = before[k] + found;
    }
    hits = { list, before };
    return list;
  }

  const find = $("find");
  function search(text) {
    const asked = text.trim().toLowerCase();
    const prefix = /^(\d+-)+(\d+)?$/.test(asked) ? asked.split("-").filter(Boolean).map(Number) : null;
    hits = null;
    $("found").textContent = "";
    if (prefix && prefix.length <= levels) {
      const node = nodeAt(prefix);
      if (node.prefix.length === prefix.length) return go(node);
    }
    const parts = asked.split(/\s+/).filter(Boolean);
    if (parts.length) {
      // A word is found by how it begins, "men" not in "women"; of scripts without spaces, anywhere.
      const begins = parts.map((part) => {
        const plain = part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        return new RegExp(/^[\p{Script=Latin}\p{N}]/u.test(part) ? `(?<![\\p{Script=Latin}\\p{N}])${plain}` : plain, "u");
      });
      const list = lightUp((k) => {
        const text = titles ? titles[k].toLowerCase() : "";
        return parts.every((part, n) => keys[k].toLowerCase().includes(part) || begins[n].test(text));
      });
      $("found").textContent = !list.length ? say("nothing")
        : whole ? say("found", { n: count(list.length) }) : say("foundSample", { n: count(list.length), m: count(sampled) });
    }
    go(hits ? root : focus, false);
  }
  find.addEventListener("input", () => search(find.value));
  find.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && find.value) { event.preventDefault(); event.stopPropagation(); find.value = ""; search(""); }
    if (event.key === "Enter" && hits && hits.list.length === 1) show(hits.list[0]);
  });

  // --- map -----------------------------------------------------------------------------------

  const canvas = $("map-canvas");
  const PAD = 10;
  let view = { x: 0.5, y: 0.5, k: 1 }; // middle, 0…1, and how many times enlarged
  let pointed = -1; // the point that the keyboard or a click is at
  const spotIn = (width, height) => (point) => [
    PAD + ((map.places[2 * point] / 65535 - view.x) * view.k + 0.5) * (width - 2 * PAD),
    PAD + (0.5 - (map.places[2 * point + 1] / 65535 - view.y) * view.k) * (height - 2 * PAD),
  ];
  const bright = (at) => (hits ? isHit(at) : at >= focus.low && at < focus.high);

  function drawMap() {
    if (!canvas || !map) return;
    const [pen, width, height] = prepare(canvas);
    const spot = spotIn(width, height);
    const points = map.at.length;
    const dot = (points > 4000 ? 1.7 : 2.6) * Math.min(Math.sqrt(view.k), 3);
    const all = !hits && focus === root;
    const colours = new Map();
    const colour = (code) => colours.get(code) || (colours.set(code, tint(code)), colours.get(code));
    const inside = (x, y) => x > -9 && y > -9 && x < width + 9 && y < height + 9;
    for (const lit of all ? [true] : [false, true])
      for (let point = 0; point < points; point++) {
        const at = map.at[point];
        if (!all && bright(at) !== lit) continue;
        const [x, y] = spot(point);
        if (!inside(x, y)) continue;
        pen.globalAlpha = lit ? (all ? 0.72 : 0.95) : 0.1;
        pen.fillStyle = lit ? colour(codes[at * levels]) : ink("--soft");
        pen.beginPath();
        pen.arc(x, y, lit && !all ? dot + 1 : dot, 0, 2 * Math.PI);
        pen.fill();
      }
    pen.globalAlpha = 1;
    // Names of large codes at the middle of their dots, as many as do not touch.
    const own = new Map();
    for (let point = 0; point < points; point++) {
      const at = map.at[point];
      if (!bright(at)) continue;
      const place = spot(point);
      if (!inside(...place)) continue;
      const code = focus.prefix.length && !hits && focus.prefix.length < levels ? focus.prefix.length : 0;
      const name = codes[at * levels + code];
      if (!own.has(name)) own.set(name, []);
      own.get(name).push(place);
    }
    const deep = focus.prefix.length && !hits && focus.prefix.length < levels;
    const taken = [];
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const wanted = [...own].sort((a, b) => b[1].length - a[1].length);
    for (const [code, spots] of wanted) {
      if (taken.length >= (width > 600 ? 26 : 12)) break;
      const middle = (axis) => spots.map((place) => place[axis]).sort((a, b) => a - b)[spots.length >> 1];
      const node = nodeAt(deep ? [...focus.prefix, code] : [code]);
      const text = [deep ? `…-${code}` : code, ...topic(node, 2)].join(" ");
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
    if (pointed >= 0) {
      const [x, y] = spot(pointed);
      for (let k = 0; k < map.each; k++) { // whole lines lead to neighbours with its first code, broken ones to others
        const other = map.nearest[pointed * map.each + k];
        const [a, b] = spot(other);
        const same = codes[map.at[other] * levels] === codes[map.at[pointed] * levels];
        pen.setLineDash(same ? [] : [4, 4]);
        pen.strokeStyle = ink("--ink"); pen.lineWidth = 1.5;
        pen.beginPath(); pen.moveTo(x, y); pen.lineTo(a, b); pen.stroke();
        pen.setLineDash([]);
        pen.fillStyle = colour(codes[map.at[other] * levels]);
        pen.beginPath(); pen.arc(a, b, dot + 2, 0, 2 * Math.PI); pen.fill(); pen.stroke();
      }
      pen.fillStyle = colour(codes[map.at[pointed] * levels]);
      pen.lineWidth = 2.5;
      pen.beginPath(); pen.arc(x, y, dot + 4, 0, 2 * Math.PI); pen.fill(); pen.stroke();
    }
  }
  function pointAt(event) {
    const box = canvas.getBoundingClientRect();
    const spot = spotIn(box.width, box.height);
    let best = -1;
    let least = 14;
    for (let point = 0; point < map.at.length; point++) {
      const [x, y] = spot(point);
      const far = Math.hypot(x - event.clientX + box.left, y - event.clientY + box.top);
      if (far < least && (bright(map.at[point]) || far < 3)) { least = far; best = point; }
    }
    return best;
  }
  const tell = (point) => {
    if (point < 0) return say("pointMap");
    const at = map.at[point];
    return `${keys[at]} ${idOf(at).join("-")}${titles && titles[at] ? `: ${titles[at]}` : ""}. ${shared(point)}`;
  };
  // How many of its nearest share its first code.
  const shared = (point) => {
    if (!map.each) return "";
    let same = 0;
    for (let k = 0; k < map.each; k++)
      same += codes[map.at[map.nearest[point * map.each + k]] * levels] === codes[map.at[point] * levels];
    return say("share1", { n: same, m: map.each });
  };
  function zoom(factor, x = view.x, y = view.y) {
    const k = Math.min(Math.max(view.k * factor, 1), 64);
    const moved = 1 - view.k / k; // what was at x, y stays where it is
    view = { k, x: view.x + (x - view.x) * moved, y: view.y + (y - view.y) * moved };
    keep();
    drawMap();
  }
  function keep() { // the map fills its frame
    const half = 0.5 / view.k;
    view.x = Math.min(Math.max(view.x, half), 1 - half);
    view.y = Math.min(Math.max(view.y, half), 1 - half);
  }
  function reveal(point) { // brings a point into the frame
    const half = 0.45 / view.k;
    const [x, y] = [map.places[2 * point] / 65535, map.places[2 * point + 1] / 65535];
    if (Math.abs(x - view.x) > half || Math.abs(y - view.y) > half) { view.x = x; view.y = y; keep(); }
  }
  function step(dx, dy) { // to the next bright point in a direction: near, and not far to the side
    let best = -1;
    let least = Infinity;
    const [x, y] = pointed < 0 ? [view.x * 65535, view.y * 65535] : [map.places[2 * pointed], map.places[2 * pointed + 1]];
    for (let point = 0; point < map.at.length; point++) {
      if (point === pointed || !bright(map.at[point])) continue;
      const right = map.places[2 * point] - x;
      const up = map.places[2 * point + 1] - y;
      const along = right * dx + up * dy;
      if (pointed >= 0 && along <= 0) continue;
      const far = pointed < 0 ? Math.hypot(right, up) : along + 2.5 * Math.abs(right * dy - up * dx);
      if (far < least) { least = far; best = point; }
    }
    if (best < 0) return;
    pointed = best;
    reveal(best);
    drawMap();
    $("map-tip").textContent = tell(best);
  }
  if (canvas && map) {
    let dragged = null;
    let brush = null; // a rectangle that is drawn to choose items: where all is shown, or with Shift
    canvas.addEventListener("pointerdown", (event) => {
      dragged = { x: event.clientX, y: event.clientY, far: 0 };
      brush = event.pointerType !== "touch" && (view.k === 1 || event.shiftKey) ? { ...dragged } : null;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!dragged || !event.buttons) return;
      if (brush) {
        const box = canvas.getBoundingClientRect();
        const pen = canvas.getContext("2d");
        dragged.far = Math.hypot(event.clientX - brush.x, event.clientY - brush.y);
        drawMap();
        pen.strokeStyle = ink("--ink"); pen.lineWidth = 1.5; pen.setLineDash([5, 4]);
        pen.strokeRect(brush.x - box.left, brush.y - box.top, event.clientX - brush.x, event.clientY - brush.y);
        pen.setLineDash([]);
        return;
      }
      if (view.k === 1) return;
      const box = canvas.getBoundingClientRect();
      view.x -= (event.clientX - dragged.x) / (box.width - 2 * PAD) / view.k;
      view.y += (event.clientY - dragged.y) / (box.height - 2 * PAD) / view.k;
      dragged = { x: event.clientX, y: event.clientY, far: dragged.far + Math.hypot(event.movementX, event.movementY) };
      keep();
      drawMap();
    });
    canvas.addEventListener("mousemove", (event) => {
      if (event.buttons) return;
      const point = pointAt(event);
      if (point >= 0 || pointed < 0) $("map-tip").textContent = tell(point);
    });
    canvas.addEventListener("click", (event) => {
      const far = dragged ? dragged.far : 0;
      const from = brush;
      dragged = brush = null;
      if (from && far > 5) choose(from, event);
      if (far > 5) return;
      const point = pointAt(event);
      if (point >= 0) show(map.at[point]);
      else { pointed = -1; drawMap(); $("map-tip").textContent = say("pointMap"); }
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // else the page scrolls
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left - PAD) / (box.width - 2 * PAD) - 0.5) / view.k + view.x;
      const y = (0.5 - (event.clientY - box.top - PAD) / (box.height - 2 * PAD)) / view.k + view.y;
      zoom(event.deltaY < 0 ? 1.3 : 1 / 1.3, x, y);
    }, { passive: false });
    function choose(from, to) { // what lies in the rectangle is lit up; its largest first codes are told
      const box = canvas.getBoundingClientRect();
      const spot = spotIn(box.width, box.height);
      const within = (value, a, b) => value >= Math.min(a, b) && value <= Math.max(a, b);
      const inside = new Set();
      for (let point = 0; point < map.at.length; point++) {
        const [x, y] = spot(point);
        if (within(x + box.left, from.x, to.clientX) && within(y + box.top, from.y, to.clientY)) inside.add(map.at[point]);
      }
      find.value = "";
      search("");
      if (!inside.size) return;
      const list = lightUp((k) => inside.has(k));
      const byCode = new Map();
      for (const at of list) byCode.set(codes[at * levels], (byCode.get(codes[at * levels]) || 0) + 1);
      const most = [...byCode].sort((a, b) => b[1] - a[1]).slice(0, 4);
      go(root, false);
      const named = most.map(([code, n]) => [`${code} (${Math.round((100 * n) / list.length)} %)`, ...topic(nodeAt([code]), 2)].join(" "));
      $("map-tip").textContent = say("chosen", { n: count(list.length), codes: named.join(", ") });
    }
    const nothing = () => { if (hits) search(find.value = ""); pointed = -1; view = { x: 0.5, y: 0.5, k: 1 }; drawMap(); $("map-tip").textContent = say("pointMap"); };
    const actions = {
      ArrowRight: () => step(1, 0), ArrowLeft: () => step(-1, 0), ArrowUp: () => step(0, 1), ArrowDown: () => step(0, -1),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => { view = { x: 0.5, y: 0.5, k: 1 }; drawMap(); },
      Enter: () => pointed >= 0 && show(map.at[pointed]), " ": () => actions.Enter(), Escape: nothing,
    };
    canvas.addEventListener("keydown", (event) => {
      if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      actions[event.key]();
    });
    $("map-in").addEventListener("click", () => zoom(1.5));
    $("map-out").addEventListener("click", () => zoom(1 / 1.5));
    $("map-all").addEventListener("click", () => { view = { x: 0.5, y: 0.5, k: 1 }; drawMap(); });
    $("map-tip").textContent = say("pointMap");
  }

  // --- an item: its ID level by level, and who is near --------------------------------------------

  const panel = $("item");
  let opener = null; // where the keyboard was before

  function table(names, rows, numbers) { // columns of numbers are set to the right
    const found = make("table");
    const head = make("tr");
    names.forEach((name, k) => {
      const cell = make("th", numbers.includes(k) ? "n" : "", name);
      cell.scope = "col";
      head.append(cell);
    });
    const top = make("thead");
    top.append(head);
    const body = make("tbody");
    for (const row of rows) {
      const line = make("tr");
      row.forEach((content, k) => {
        const cell = make("td", numbers.includes(k) ? "n" : "");
        cell.append(content);
        line.append(cell);
      });
      body.append(line);
    }
    found.append(top, body);
    return found;
  }
  const common = (one, other) => {
    let depth = 0;
    while (depth < levels && codes[one * levels + depth] === codes[other * levels + depth]) depth++;
    return depth;
  };
  function idBeside(at, other) { // its ID, with what it has in common in bold
    const depth = common(at, other);
    const parts = idOf(at);
    const id = make("code");
    if (depth) id.append(make("b", "", parts.slice(0, depth).join("-")));
    id.append((depth && depth < levels ? "-" : "") + parts.slice(depth).join("-"));
    id.title = say("common", { n: depth });
    return id;
  }

  function draw(at) {
    const title = titles && titles[at];
    const head = make("div", "head");
    const name = make("h2", "");
    name.id = "item-name";
    name.append(make("bdi", "", title || say("itemOf", { key: keys[at] })));
    const close = button("close", "×", () => hide());
    close.setAttribute("aria-label", say("close"));
    head.append(name, close);
    const about = make("p", "soft");
    const own = make("a", "", keys[at]);
    own.href = `#item=${encodeURIComponent(keys[at])}`;
    own.title = say("link");
    about.append(own, title ? "" : ` · ${say("untitled")}`, " · ", make("code", "", idOf(at).join("-")));
    panel.replaceChildren(head, about);
    const id = idOf(at);
    panel.append(table([say("level"), say("code"), say("itemsThere"), say("about")], id.map((code, level) => {
      const node = nodeAt(id.slice(0, level + 1));
      const found = node.prefix.length === level + 1;
      const alone = found && node.high - node.low === 1;
      return [String(level + 1), button("link code", String(code), () => go(node)),
        found ? (node.exact ? "" : "≥ ") + count(node.count) : "", found && !alone ? topic(node, 3).join(" · ") : ""];
    }), [2]));
    const point = pointOf.get(at);
    panel.append(make("h3", "", say("nearest")));
    if (map && point !== undefined && map.each) {
      panel.append(make("p", "", shared(point)));
      panel.append(table([say("title"), say("codesIn"), say("distance")], Array.from({ length: map.each }, (_, k) => {
        const other = map.at[map.nearest[point * map.each + k]];
        const far = (map.distances[point * map.each + k] / 65535) * data.map.longest;
        return [link(other), idBeside(other, at), far.toPrecision(3)];
      }), [2]));
    } else panel.append(make("p", "none", say("noNearest")));
    let depth = levels - 1;
    let node = nodeAt(id.slice(0, depth));
    while (depth > 1 && node.high - node.low < 2) node = nodeAt(id.slice(0, --depth));
    const others = [];
    for (let k = node.low; k < node.high && others.length < 8; k++) if (k !== at) others.push(k);
    if (levels > 1) {
      panel.append(make("h3", "", say("siblings", { n: depth })));
      if (others.length) {
        const list = make("ul", "tree");
        others.forEach((other) => list.append(itemOf(other)));
        panel.append(list);
      } else panel.append(make("p", "none", say("alone")));
    }
  }

  function open() {
    if (panel.hidden) opener = document.activeElement;
    panel.hidden = false;
    document.body.classList.add("beside");
    panel.scrollTop = 0;
    panel.focus({ preventScroll: true });
    drawSun();
  }
  // Shows an item of the sample: beside the page, and on the map.
  function show(at, remembered = true) {
    picked = at;
    draw(at);
    pointed = pointOf.get(at) ?? -1;
    if (pointed >= 0) { reveal(pointed); $("map-tip").textContent = tell(pointed); }
    open();
    drawMap();
    if (remembered) remember(`#item=${encodeURIComponent(keys[at])}`);
  }
  function miss(key) {
    const head = make("div", "head");
    const name = make("h2", "", say("itemOf", { key }));
    name.id = "item-name";
    const close = button("close", "×", () => hide());
    close.setAttribute("aria-label", say("close"));
    head.append(name, close);
    const lacks = whole ? say("unknownItem", { key }) : say("notHere", { key, m: count(sampled), n: count(data.items) });
    panel.replaceChildren(head, make("p", "none", lacks));
    open();
  }
  function hide(remembered = true) {
    if (panel.hidden) return;
    panel.hidden = true;
    picked = -1;
    document.body.classList.remove("beside");
    redraw();
    if (opener && opener.isConnected && opener !== document.body) opener.focus({ preventScroll: true });
    else (canvas || sun).focus({ preventScroll: true });
    if (remembered) remember(focus.prefix.length ? `#prefix=${focus.prefix.join("-")}` : "#tree");
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // --- addresses: #item=…, #prefix=…, #find=… ---------------------------------------------------

  function read() {
    const [, kind, value] = /^#(item|prefix|find)=(.*)$/s.exec(location.hash) || [];
    let wanted = value;
    try { wanted = decodeURIComponent(value); } catch { /* not encoded: as it stands */ }
    if (kind === "item") {
      const at = keys.indexOf(wanted);
      if (at >= 0) show(at, false);
      else miss(wanted);
    } else if (kind === "prefix") {
      hide(false);
      go(nodeAt(wanted.split("-").map(Number)), false);
      $("tree").scrollIntoView();
    } else if (kind === "find") {
      find.value = wanted;
      search(wanted);
      $("tree").scrollIntoView();
    } else if (!location.hash || location.hash === "#tree") {
      hide(false);
      if (focus !== root) go(root, false);
    }
  }
  window.addEventListener("popstate", read);

  // --- begin, and again when the window or the light changes -----------------------------------

  function redraw() { drawSun(); drawMap(); }
  go(root, false);
  if (location.hash) read();
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
