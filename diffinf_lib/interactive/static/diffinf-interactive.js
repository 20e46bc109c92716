// The interactive figures of the book: one script for every figure, no framework, no network.
//
// A figure is a state (an index for each control) and views that draw it. Python hands over the data as JSON: controls,
// presets and views; arrays are base64, images are one sheet. Every number that is shown is computed here as the Python
// class of the same name computes it, and the tests compare the two. Text goes through textContent only.
(function () {
  "use strict";

  const STARTED = Symbol.for("diffinf.started");
  const SVG = "http://www.w3.org/2000/svg";
  const MARKERS = [
    "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z", "M-3.6-3.6H3.6V3.6H-3.6Z", "M0-4.6L4.4 3.4H-4.4Z", "M0-5L5 0L0 5L-5 0Z",
    "M0 4.6L4.4-3.4H-4.4Z", "M-1.4-4.4H1.4V-1.4H4.4V1.4H1.4V4.4H-1.4V1.4H-4.4V-1.4H-1.4Z",
  ];
  const DASHES = ["none", "7 4", "2 3", "9 3 2 3", "5 2", "1 4"];
  const RESAMPLES = 400;

  // --- elements

  const FOCUSED = ["button", "input", "select"];

  function attributes(made, given) {
    // In JupyterLab a key belongs to what has the focus, and is no shortcut, where this is said
    if (FOCUSED.includes(made.localName) || "tabindex" in (given || {})) made.setAttribute("data-lm-suppress-shortcuts", "true");
    for (const [name, value] of Object.entries(given || {})) {
      if (name === "text") made.textContent = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    return made;
  }

  function make(tag, given, ...children) {
    const made = attributes(document.createElement(tag), given);
    made.append(...children);
    return made;
  }

  function shape(tag, given, parent) {
    const made = attributes(document.createElementNS(SVG, tag), given);
    if (parent) parent.append(made);
    return made;
  }

  // Set only what changed, so that a screen reader hears no sentence twice.
  function say(element, sentence) {
    if (element.textContent !== sentence) element.textContent = sentence;
  }

  // --- numbers

  // A number as `numbers.text` of Python writes it; `form` is [+].<digits><e|f|g|%> or d.
  function text(value, form) {
    if (!Number.isFinite(value)) return "–";
    const plus = form.startsWith("+"), kind = form.slice(-1), digits = Number((/\.(\d+)/.exec(form) || [0, 0])[1]);
    let written = kind === "d" ? Math.round(value).toLocaleString("en")
      : kind === "%" ? (100 * value).toFixed(digits) + " %"
      : kind === "f" ? value.toFixed(digits)
      : kind === "e" ? exponential(value, digits) : significant(value, digits);
    if (!/[1-9]/.test(written.split("e")[0])) written = written.replace("-", "");
    return ((plus && !written.startsWith("-") ? "+" : "") + written).replaceAll("-", "−");
  }

  function exponential(value, digits) {
    return value.toExponential(digits).replace("e+", "e").replace(/e-?0$/, "");
  }

  function significant(value, digits) {
    if (value === 0) return "0";
    const exponent = Number(value.toExponential(digits - 1).split("e")[1]);
    return exponent < -4 || exponent >= 6 ? exponential(value, digits - 1) : value.toFixed(Math.max(0, digits - 1 - exponent));
  }

  function ordinal(number) {
    const ten = number % 10, hundred = number % 100;
    const end = ten === 1 && hundred !== 11 ? "st" : ten === 2 && hundred !== 12 ? "nd" : ten === 3 && hundred !== 13 ? "rd" : "th";
    return number.toLocaleString("en") + end;
  }

  function capital(sentence) {
    return sentence.charAt(0).toUpperCase() + sentence.slice(1);
  }

  // --- data

  const TYPES = { f4: Float32Array, u2: Uint16Array, u1: Uint8Array };

  // An array of Python's with its shape and the names of the controls that its leading axes belong to.
  function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
    const codes = new TYPES[packed.type](bytes.buffer);
    const values = packed.step === undefined ? Float64Array.from(codes)
      : Float64Array.from(codes, (code) => packed.low + packed.step * code);
    return { values: values, shape: packed.shape, by: packed.by };
  }

  // What an array holds in one state: the values of its trailing axes.
  function at(array, state) {
    let place = 0;
    array.by.forEach((name, axis) => { place = place * array.shape[axis] + state[name]; });
    const size = array.shape.slice(array.by.length).reduce((product, length) => product * length, 1);
    return array.values.subarray(place * size, (place + 1) * size);
  }

  function listed(list, state) {
    let found = list.values;
    list.by.forEach((name) => { found = found[state[name]]; });
    return found;
  }

  function extent(arrays) {
    let low = Infinity, high = -Infinity;
    for (const values of arrays) for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  }

  // --- statistics, as diffinf_lib.evaluation defines them

  function mean(values) {
    let sum = 0;
    for (const value of values) sum += value;
    return sum / values.length;
  }

  // Average ranks, from 1.
  function ranks(values) {
    const order = Array.from(values.keys()).sort((a, b) => values[a] - values[b]), found = new Float64Array(values.length);
    for (let first = 0; first < order.length;) {
      let after = first;
      while (after < order.length && values[order[after]] === values[order[first]]) after++;
      for (let place = first; place < after; place++) found[order[place]] = (first + 1 + after) / 2;
      first = after;
    }
    return found;
  }

  // Pearson's correlation; 0 where one side is constant.
  function pearson(first, second) {
    const a = mean(first), b = mean(second);
    let product = 0, squares = 0, others = 0;
    for (let i = 0; i < first.length; i++) {
      product += (first[i] - a) * (second[i] - b);
      squares += (first[i] - a) ** 2;
      others += (second[i] - b) ** 2;
    }
    const scale = Math.sqrt(squares * others);
    return scale > 0 ? product / scale : 0;
  }

  function spearman(first, second) {
    return pearson(ranks(first), ranks(second));
  }

  // Least-squares slope and intercept of y on x.
  function fit(x, y) {
    const a = mean(x), b = mean(y);
    let product = 0, squares = 0;
    for (let i = 0; i < x.length; i++) {
      product += (x[i] - a) * (y[i] - b);
      squares += (x[i] - a) ** 2;
    }
    const slope = squares > 0 ? product / squares : NaN;
    return [slope, b - slope * a];
  }

  function signs(values) {
    return Array.from(values, (value) => Float64Array.from(values, (other) => Math.sign(value - other)));
  }

  // Ranks within a resample, centred and of length 1, times √counts: the product of two such vectors is Spearman's.
  function unitRanks(sign, counts) {
    const found = new Float64Array(counts.length);
    let squares = 0;
    for (let i = 0; i < counts.length; i++) {
      if (counts[i] === 0) continue;
      let rank = 0;
      for (let j = 0; j < counts.length; j++) rank += counts[j] * sign[i][j];
      found[i] = rank * Math.sqrt(counts[i]);
      squares += found[i] ** 2;
    }
    if (squares > 0) for (let i = 0; i < found.length; i++) found[i] /= Math.sqrt(squares);
    return found;
  }

  function dot(first, second) {
    let sum = 0;
    for (let i = 0; i < first.length; i++) sum += first[i] * second[i];
    return sum;
  }

  // Well-mixed 32 bits of a counter: the finaliser of MurmurHash3.
  function mixed(counter) {
    let bits = (counter + 1) >>> 0;
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return (bits ^ (bits >>> 16)) >>> 0;
  }

  function resample(count, which) {
    const counts = new Float64Array(count);
    for (let i = 0; i < count; i++) counts[Math.floor(mixed(which * count + i) / 4294967296 * count)] += 1;
    return counts;
  }

  function quantile(sorted, share) {
    const place = share * (sorted.length - 1), below = Math.floor(place), above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  }

  // The interval of one query's Spearman: bootstrap over subsets, as wide as the jackknife says.
  function interval(first, second, value, student) {
    const a = signs(first), b = signs(second), count = first.length;
    const correlation = (counts) => dot(unitRanks(a, counts), unitRanks(b, counts));
    const pseudo = new Float64Array(count);
    for (let left = 0; left < count; left++) {
      const counts = new Float64Array(count).fill(1);
      counts[left] = 0;
      pseudo[left] = count * value - (count - 1) * correlation(counts);
    }
    const drawn = Float64Array.from({ length: RESAMPLES }, (_, which) => correlation(resample(count, which))).sort();
    const middle = mean(drawn), centre = mean(pseudo);
    const spread = Math.sqrt(mean(drawn.map((one) => (one - middle) ** 2)));
    const error = Math.sqrt(pseudo.reduce((sum, one) => sum + (one - centre) ** 2, 0) / (count - 1) / count);
    const width = spread > 0 ? error / spread * student : 1;
    const ends = [quantile(drawn, 0.025), quantile(drawn, 0.975)], pivot = Math.min(Math.max(middle, ends[0]), ends[1]);
    return ends.map((end) => Math.min(1, Math.max(-1, value + width * (end - pivot))));
  }

  // --- pictures

  function loaded(sheet) {
    const image = new Image();
    image.src = sheet.uri;
    return image.decode().then(() => image);
  }

  // One picture of a sheet as a canvas of its own pixels; the style makes it larger.
  function picture(sheet, label) {
    const canvas = make("canvas", { class: "diffinf-picture", width: sheet.width, height: sheet.height });
    attributes(canvas, label === null ? { "aria-hidden": "true" } : { role: "img", "aria-label": label || "" });
    canvas.classList.toggle("diffinf-smooth", Math.max(sheet.width, sheet.height) > 48);
    canvas.show = (place, name) => {
      if (name !== undefined) canvas.setAttribute("aria-label", name);
      canvas.place = place;
      sheet.image.then((image) => {
        if (canvas.place !== place) return; // another was asked for meanwhile
        const context = canvas.getContext("2d");
        const left = (place % sheet.columns) * sheet.width, top = Math.floor(place / sheet.columns) * sheet.height;
        context.clearRect(0, 0, sheet.width, sheet.height);
        context.drawImage(image, left, top, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
      });
    };
    return canvas;
  }

  function opened(sheet) {
    return Object.assign({}, sheet, { image: loaded(sheet) });
  }

  // --- controls: native elements; each has `root` and `show(index)`

  const CONTROLS = {
    slider(control, choose) {
      const last = control.options.length - 1, told = make("output", { class: "diffinf-value" });
      const range = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": control.name });
      range.addEventListener("input", () => choose(Number(range.value)));
      // the widest option keeps its room, so that nothing moves while the slider does
      told.style.minWidth = Math.max(...control.options.map((option) => option.length)) + 0.5 + "ch";
      const root = make("label", { class: "diffinf-control" }, make("span", { class: "diffinf-label", text: control.name }), range, told);
      return { root, show(index) {
        range.value = index;
        range.setAttribute("aria-valuetext", control.options[index]);
        range.style.setProperty("--_share", last ? index / last : 0);
        told.textContent = control.options[index];
      } };
    },
    list(control, choose) {
      const select = make("select", { "aria-label": control.name },
        ...control.options.map((option, index) => make("option", { value: index, text: option })));
      select.addEventListener("input", () => choose(Number(select.value)));
      const root = make("label", { class: "diffinf-control" }, make("span", { class: "diffinf-label", text: control.name }), select);
      return { root, show(index) { select.value = index; } };
    },
    radio(control, choose) {
      const group = "diffinf-" + Math.random().toString(36).slice(2), sheet = control.sheet && opened(control.sheet);
      const inputs = control.options.map((option, index) => {
        const input = make("input", { type: "radio", name: group, value: index, "aria-label": sheet ? option : null });
        input.addEventListener("input", () => choose(index));
        return input;
      });
      const labels = control.options.map((option, index) => {
        const drawn = sheet ? picture(sheet, null) : make("span", { text: option });
        if (sheet) drawn.show(index);
        return make("label", { title: sheet ? option : null }, inputs[index], drawn);
      });
      const bar = make("span", { class: sheet ? "diffinf-thumbs" : "diffinf-segments" }, ...labels);
      const root = make("div", { class: "diffinf-control", role: "radiogroup", "aria-label": control.name }, make("span", { class: "diffinf-label", text: control.name }), bar);
      return { root, show(index) { inputs[index].checked = true; } };
    },
  };

  // --- a cursor over the items of a drawing: the pointer, a tap or the arrow keys choose one, its text is told

  function cursor(zone, detail, ring) {
    let items = [], chosen = null, hint = "";
    attributes(zone, { tabindex: "0", role: "group" });
    function choose(index) {
      chosen = index === null || !items.length ? null : Math.min(Math.max(index, 0), items.length - 1);
      say(detail, chosen === null ? hint : items[chosen].text);
      ring(chosen === null ? null : items[chosen]);
    }
    function nearest(event) {
      const box = zone.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = null, least = 40 ** 2;
      items.forEach((item, index) => {
        const distance = (item.x - x) ** 2 + (item.y - y) ** 2;
        if (distance < least) { best = index; least = distance; }
      });
      choose(best);
    }
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: (items) => -(items.columns || 1), ArrowDown: (items) => items.columns || 1 };
    zone.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (step !== undefined) choose(chosen === null ? 0 : chosen + (typeof step === "number" ? step : step(items)));
      else if (event.key === "Home") choose(0);
      else if (event.key === "End") choose(items.length - 1);
      else if (event.key === "Escape") choose(null);
      else return;
      event.preventDefault();
    });
    zone.addEventListener("pointermove", nearest);
    zone.addEventListener("pointerdown", nearest);
    zone.addEventListener("pointerleave", () => { if (document.activeElement !== zone) choose(null); });
    zone.addEventListener("blur", () => choose(null));
    return { show(given, sentence) { items = given; hint = sentence; choose(chosen); } };
  }

  // --- charts

  // Round numbers in an extent, about as many as wanted and three at least.
  function niceTicks(low, high, wanted) {
    const found = evenTicks(low, high, wanted);
    return found.length < 3 && wanted < 12 ? niceTicks(low, high, wanted + 1) : found;
  }

  function evenTicks(low, high, wanted) {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power, ticks = [];
    for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place++) ticks.push(place * step);
    const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return ticks.map((tick) => [tick, Math.abs(tick) >= 1e6 || places > 4 ? tickText(tick) : text(tick, "." + places + "f")]);
  }

  function tickText(tick) {
    return text(tick, ".2e").replace(/\.?0+e/, "e").replace(/^0.*/, "0");
  }

  function logTicks(low, high, wanted) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    if (last - first < 1) {
      const binary = [];
      for (let power = Math.ceil(Math.log2(low) - 1e-9); power <= Math.log2(high) + 1e-9; power++) binary.push([2 ** power, significant(2 ** power, 3)]);
      return binary;
    }
    if (last - first < 2) return roundTicks(low, high);
    const step = Math.max(1, Math.ceil((last - first + 1) / wanted)), ticks = [];
    for (let power = first; power <= last; power += step) {
      ticks.push([10 ** power, power >= -2 && power <= 4 ? text(10 ** power, "." + Math.max(0, -power) + "f") : text(10 ** power, ".0e")]);
    }
    return ticks;
  }

  // Ones, twos and fives, where powers of ten are too few.
  function roundTicks(low, high) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      for (const factor of [1, 2, 5]) {
        const tick = factor * 10 ** power;
        if (low <= tick && tick <= high) ticks.push([tick, text(tick, "." + Math.max(0, -power) + "f")]);
      }
    }
    return ticks;
  }

  class Chart {
    // A drawing with axes: `back` is drawn anew each time, `front` keeps what has the focus.
    constructor(host, label) {
      this.zone = make("div", { class: "diffinf-zone" });
      this.svg = shape("svg", { class: "diffinf-chart", role: "img", "aria-label": label }, this.zone);
      this.back = shape("g", {}, this.svg);
      this.front = shape("g", {}, this.svg);
      this.ring = shape("circle", { class: "diffinf-ring", r: 8, visibility: "hidden" }, this.front);
      this.detail = make("p", { class: "diffinf-detail", "aria-live": "polite" });
      host.append(this.zone, this.detail);
    }

    mark(item) {
      this.ring.setAttribute("visibility", item ? "visible" : "hidden");
      if (item) attributes(this.ring, { cx: item.x, cy: item.y });
    }

    // Axes for the given extents; sets this.x and this.y, from values to pixels.
    frame(spec, xs, ys) {
      const width = Math.max(240, this.zone.clientWidth), height = Math.round(Math.min(spec.height || 300, 0.86 * width));
      let [left, right] = padded(xs, spec.logX, spec.tightX ? 0 : 0.03), [low, high] = padded(ys, spec.logY, 0.06);
      const up = spec.logY ? logTicks(low, high, 6) : niceTicks(low, high, height < 220 ? 4 : 6);
      const box = { left: 14 + 7 * Math.max(...up.map((tick) => tick[1].length), 1), right: width - 14, top: 30, bottom: height - 42 };
      if (spec.equal) [left, right, low, high] = evened(left, right, low, high, box);
      const across = spec.ticks ? spec.ticks.map((tick) => [tick, text(tick, spec.xForm)]) : spec.logX ? logTicks(left, right, width < 450 ? 5 : 8) : niceTicks(left, right, width < 450 ? 4 : 7);
      const upward = spec.equal ? niceTicks(low, high, 6) : up;
      this.x = scale(left, right, box.left, box.right, spec.logX);
      this.y = scale(low, high, box.bottom, box.top, spec.logY);
      this.box = box;
      attributes(this.svg, { width: width, height: height, viewBox: `0 0 ${width} ${height}` });
      this.back.replaceChildren();
      const axes = shape("g", { class: "diffinf-axes", "aria-hidden": "true" }, this.back);
      for (const [tick, label] of upward) {
        shape("line", { class: "diffinf-grid", x1: box.left, x2: box.right, y1: this.y(tick), y2: this.y(tick) }, axes);
        shape("text", { x: box.left - 7, y: this.y(tick), dy: "0.35em", "text-anchor": "end", text: label }, axes);
      }
      thinned(across, this.x).forEach(([tick, label]) => {
        shape("line", { class: "diffinf-tick", x1: this.x(tick), x2: this.x(tick), y1: box.bottom, y2: box.bottom + 4 }, axes);
        shape("text", { x: this.x(tick), y: box.bottom + 17, "text-anchor": "middle", text: label }, axes);
      });
      shape("line", { class: "diffinf-axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }, axes);
      shape("text", { class: "diffinf-axis-label", x: 2, y: 13, text: spec.yLabel }, axes);
      shape("text", { class: "diffinf-axis-label", x: box.right, y: box.bottom + 36, "text-anchor": "end", text: spec.xLabel }, axes);
      const inside = { x: box.left - 8, y: box.top - 8, width: box.right - box.left + 16, height: box.bottom - box.top + 8 };
      return shape("svg", Object.assign({ class: "diffinf-plot", "aria-hidden": "true", viewBox: Object.values(inside).join(" ") }, inside), this.back);
    }

    path(points, parent, given) {
      let drawn = "", pen = "M";
      for (const [x, y] of points) {
        const across = this.x(x), up = this.y(y);
        if (!Number.isFinite(across) || !Number.isFinite(up)) { pen = "M"; continue; }
        drawn += pen + across.toFixed(2) + " " + up.toFixed(2);
        pen = "L";
      }
      return shape("path", Object.assign({ d: drawn, fill: "none" }, given), parent);
    }

    dot(x, y, parent, series, given) {
      const place = `translate(${this.x(x).toFixed(2)} ${this.y(y).toFixed(2)})`;
      return shape("path", Object.assign({ d: MARKERS[series % MARKERS.length], transform: place, class: "diffinf-dot diffinf-series-" + (series % 6) }, given), parent);
    }

    // A straight line through (x, y), across the whole frame, which cuts it.
    ray(x, y, slope, parent, given) {
      const { left, right } = this.box, x0 = this.x(x), y0 = this.y(y), steep = (this.y(y + slope) - y0) / (this.x(x + 1) - x0);
      const ends = { x1: left, y1: y0 + steep * (left - x0), x2: right, y2: y0 + steep * (right - x0) };
      return shape("line", Object.assign(ends, given), parent);
    }
  }

  function padded([low, high], log, share) {
    if (!(high > low)) [low, high] = log ? [low / 2, low * 2] : [low - 0.5, high + 0.5];
    if (log) { const more = (high / low) ** share; return [low / more, high * more]; }
    return [low - share * (high - low), high + share * (high - low)];
  }

  function scale(low, high, from, to, log) {
    const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
    return (value) => from + ((log ? Math.log(value) : value) - a) / (b - a) * (to - from);
  }

  // The same unit on both axes.
  function evened(left, right, low, high, box) {
    const unit = Math.max((right - left) / (box.right - box.left), (high - low) / (box.bottom - box.top));
    const across = unit * (box.right - box.left) / 2, up = unit * (box.bottom - box.top) / 2;
    const [x, y] = [(left + right) / 2, (low + high) / 2];
    return [x - across, x + across, y - up, y + up];
  }

  function thinned(ticks, place) {
    let last = -Infinity;
    return ticks.filter(([tick, label]) => {
      const half = 4 + 3.5 * label.length, free = place(tick) - half > last;
      if (free) last = place(tick) + half;
      return free;
    });
  }

  // A point that stands for a control: dragged, or moved by arrow keys; `places` are where each option puts it.
  function handle(chart, control, figure, series = null) {
    const point = shape("g", { class: "diffinf-handle", tabindex: "0", role: "slider", "aria-label": control.name, "aria-valuemin": 0 }, chart.front);
    shape("circle", { r: 16, fill: "transparent" }, point);
    shape("circle", { r: 7, class: "diffinf-knob" + (series === null ? "" : " diffinf-series-" + series) }, point);
    const last = control.options.length - 1, steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 };
    let places = [], index = 0;
    const choose = (wanted) => figure.choose(control.name, Math.min(Math.max(wanted, 0), last));
    point.addEventListener("keydown", (event) => {
      if (event.key in steps) choose(index + steps[event.key]);
      else if (event.key === "Home") choose(0);
      else if (event.key === "End") choose(last);
      else return;
      event.preventDefault();
    });
    function follow(event) {
      const box = chart.svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = index, least = Infinity;
      places.forEach((place, which) => {
        const distance = (place[0] - x) ** 2 + ((place[1] - y) / 4) ** 2; // mostly sideways, as the hand moves
        if (distance < least) { best = which; least = distance; }
      });
      choose(best);
    }
    point.addEventListener("pointerdown", (event) => { point.setPointerCapture(event.pointerId); point.focus(); event.preventDefault(); });
    point.addEventListener("pointermove", (event) => { if (point.hasPointerCapture(event.pointerId)) follow(event); });
    return (given, state) => {
      places = given.map(([x, y]) => [chart.x(x), chart.y(y)]);
      index = state[control.name];
      attributes(point, { transform: `translate(${places[index][0]} ${places[index][1]})`, "aria-valuenow": index, "aria-valuemax": last, "aria-valuetext": control.options[index] });
    };
  }

  // Names the series below a chart.
  function legend(chart, names, solid) {
    if (names.length < 2) return;
    const list = make("ul", { class: "diffinf-legend" });
    names.forEach((name, series) => {
      const key = shape("svg", { width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" });
      if (solid) shape("line", { x1: -13, x2: 13, y1: 0, y2: 0, class: "diffinf-line diffinf-series-" + (series % 6), "stroke-dasharray": solid === "dashes" ? DASHES[series % 6] : null }, key);
      if (solid !== "dashes") shape("path", { d: MARKERS[series % MARKERS.length], class: "diffinf-dot diffinf-series-" + (series % 6) }, key);
      list.append(make("li", {}, key, make("span", { text: name })));
    });
    chart.zone.after(list);
  }

  // --- views: each takes its data, its place and the figure, and returns a function that draws a state and tells of it

  const VIEWS = {};

  VIEWS.explorer = function (data, host, figure) {
    const trained = opened(data.train), asked = opened(figure.control(data.query).sheet);
    const places = unpack(data.places), scores = unpack(data.scores), removed = unpack(data.removed);
    const query = picture(asked, ""), after = data.outcomes && data.outcomes.sheet && picture(opened(data.outcomes.sheet), "");
    const name = make("p", { class: "diffinf-asked-name" }), detail = make("p", { class: "diffinf-detail", "aria-live": "polite" });
    const pictures = make("div", { class: "diffinf-asked-pictures" }, query);
    if (after) pictures.append(make("span", { class: "diffinf-arrow", text: "→", "aria-hidden": "true" }), after);
    const rows = make("div", { class: "diffinf-rows" });
    rows.style.setProperty("--_count", data.count);
    rows.style.setProperty("--_half", Math.ceil(data.count / 2));
    host.append(make("div", { class: "diffinf-asked" }, pictures, make("div", {}, name, detail)), rows);
    const shown = data.rows.map((title, row) => {
      const cards = make("ul", { class: "diffinf-cards", "aria-label": title });
      const made = Array.from({ length: data.count }, (_, column) => {
        const drawn = picture(trained, null), bar = make("span", { class: "diffinf-bar", "aria-hidden": "true" });
        const score = make("span", { class: "diffinf-score" });
        const button = make("button", { type: "button", class: "diffinf-card", tabindex: column ? -1 : 0 }, make("span", { class: "diffinf-frame" }, drawn), bar, score);
        button.addEventListener("keydown", (event) => walk(event, made.map((one) => one.button)));
        for (const kind of ["focus", "pointerenter", "click"]) button.addEventListener(kind, () => say(detail, button.getAttribute("aria-label")));
        cards.append(make("li", {}, button));
        return { drawn, bar, score, button };
      });
      const head = make("p", { class: "diffinf-row-title", text: title }), section = make("section", { class: "diffinf-row diffinf-row-" + row }, head, cards);
      rows.append(section);
      return { made, called: (name) => { head.textContent = name; cards.setAttribute("aria-label", name); }, section };
    });
    return function (state) {
      const q = state[data.query], picked = at(places, state), values = at(scores, state), size = data.count;
      const largest = Math.max(...Array.from(values, Math.abs)), apart = values[0] - values[size], gone = data.outcomes ? state[data.outcomes.control] : 0;
      const more = apart > 0 ? Math.floor(Math.log10(largest / apart)) : 0, form = `+.${1 + Math.min(Math.max(more, 0), 4)}e`;
      query.show(q, data.names[q]);
      name.textContent = data.names[q];
      rows.hidden = Number.isNaN(values[0]);
      if (rows.hidden) { detail.textContent = capital(data.missing); return `${capital(data.names[q])}: ${data.missing}`; }
      const crossed = new Set();
      if (gone) at(removed, state).forEach((flag, place) => { if (flag) crossed.add(place); });
      const highs = Array.from(values.subarray(0, size)), lows = Array.from(values.subarray(size, 2 * size));
      const both = highs[0] > 0 && lows[0] < 0;
      shown[0].called(both && Math.min(...highs) > 0 ? data.rows[0] : "highest");
      shown[1].called(both && Math.max(...lows) < 0 ? data.rows[1] : "lowest");
      shown[2].section.hidden = !both;
      shown.forEach((row, r) => row.made.forEach((card, column) => {
        const place = picked[r * size + column], value = values[r * size + column], written = text(value, form);
        const cut = crossed.has(place), rank = r === 2 ? "" : `, ${ordinal(r === 0 ? column + 1 : data.total - column)} of ${data.total.toLocaleString("en")}`;
        card.drawn.show(place);
        card.score.textContent = written;
        card.bar.style.setProperty("--_length", largest > 0 ? Math.abs(value) / largest : 0);
        card.button.classList.toggle("diffinf-gone", cut);
        card.button.classList.toggle("diffinf-negative", value < 0);
        card.button.setAttribute("aria-label", `${data.labels[place]}: score ${written}${rank}${cut ? ", left out" : ""}`);
      }));
      let removal = "";
      if (data.outcomes) {
        removal = listed(data.outcomes.told, state);
        if (after) {
          after.show(gone ? q * data.outcomes.count + gone - 1 : 0, gone ? `${data.names[q]} after retraining` : "");
          after.parentNode.classList.toggle("diffinf-before", !gone);
        }
      }
      const first = picked[0], last = picked[size];
      detail.textContent = listed(data.hint, state);
      return `${capital(data.names[q])}: highest score ${text(values[0], form)} (${data.labels[first]}), lowest ${text(values[size], form)} (${data.labels[last]}).` + (removal ? " " + removal : "");
    };
  };

  // Arrow keys walk along a row of buttons, of which one has the tab stop.
  function walk(event, buttons) {
    const here = buttons.indexOf(event.currentTarget), last = buttons.length - 1;
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const chosen = buttons[Math.min(Math.max(next, 0), last)];
    buttons.forEach((button) => { button.tabIndex = button === chosen ? 0 : -1; });
    chosen.focus();
  }

  VIEWS.scatter = function (data, host) {
    const scores = unpack(data.scores), masks = unpack(data.masks), measured = unpack(data.measured);
    const shuffled = unpack(data.shuffled).values, [subsets, seeds, queries] = measured.shape, images = data.images;
    const left = Array.from({ length: subsets }, (_, k) => {
      const out = [];
      for (let n = 0; n < images; n++) if (!(masks.values[k * masks.shape[1] + (n >> 3)] >> (7 - (n & 7)) & 1)) out.push(n);
      return out;
    });
    const chart = new Chart(host, data.alternative), point = cursor(chart.zone, chart.detail, (item) => chart.mark(item));
    chart.zone.setAttribute("aria-label", data.alternative + "; arrow keys go through the subsets");
    const rules = {
      plain: (row) => row,
      constant: (row) => { const most = Math.max(...Array.from(row, Math.abs)); return row.map((value) => value + most); },
      clamp: (row) => row.map((value) => Math.max(value, 0)),
      absolute: (row) => row.map(Math.abs),
      shuffle: (row) => row.map((_, n) => row[shuffled[n]]),
    };
    function pair(state, q) {
      const count = state[data.subsets] + data.fewest, used = state[data.seeds] + 1;
      const row = rules[data.rules[state[data.transform]]](at(scores, state).subarray(q * images, (q + 1) * images));
      const x = Float64Array.from({ length: count }, (_, k) => left[k].reduce((sum, n) => sum + row[n], 0));
      const y = Float64Array.from({ length: count }, (_, k) => {
        let sum = 0;
        for (let r = 0; r < used; r++) sum += measured.values[(k * seeds + r) * queries + q];
        return sum / used;
      });
      return [x, y];
    }
    return function (state) {
      const q = state[data.query], [x, y] = pair(state, q), ranked = state[data.axes] === 1;
      const value = spearman(x, y), [low, high] = interval(x, y, value, data.student[x.length - data.fewest]);
      const all = mean(Array.from({ length: queries }, (_, which) => spearman(...pair(state, which))));
      const [across, up] = ranked ? [ranks(x), ranks(y)] : [x, y];
      const layer = chart.frame({ xLabel: data.xLabel + (ranked ? " (rank)" : ""), yLabel: data.yLabel + (ranked ? " (rank)" : ""), height: 320 }, extent([across]), extent([up]));
      const items = Array.from(across, (_, k) => {
        chart.dot(across[k], up[k], layer, 0);
        return { x: chart.x(across[k]), y: chart.y(up[k]), text: `subset ${k + 1}: predicted ${text(x[k], "+.2e")}, measured ${text(y[k], ".4g")}` };
      }).sort((a, b) => a.x - b.x);
      point.show(items, "");
      return `${capital(data.names[q])}: Spearman ${text(value, ".3f")} [${text(low, ".2f")}, ${text(high, ".2f")}] over ${x.length} subsets and ${state[data.seeds] + 1} ${state[data.seeds] ? "seeds" : "seed"}. `
        + `Mean over ${queries} ${queries === 1 ? "query" : "queries"}: ${text(all, ".3f")}.`;
    };
  };

  VIEWS.points = function (data, host, figure) {
    const x = unpack(data.x), y = unpack(data.y), chart = new Chart(host, data.alternative);
    const point = cursor(chart.zone, chart.detail, (item) => chart.mark(item)), drag = dragged(chart, data, figure);
    chart.zone.setAttribute("aria-label", data.alternative + "; arrow keys go through the points");
    return function (state) {
      const pairs = [at(x, state), at(y, state)], there = Array.from(pairs[0].keys()).filter((i) => Number.isFinite(pairs[0][i]) && Number.isFinite(pairs[1][i]));
      const [across, up] = pairs.map((values) => there.map((i) => values[i])), [slope, start] = fit(across, up);
      const xs = extent([data.free ? across : x.values]), ys = extent([data.free ? up : y.values]);
      const layer = chart.frame(data, xs, ys);
      if (data.identity) chart.ray(0, 0, 1, layer, { class: "diffinf-reference" });
      if (data.slope) chart.ray(mean(across), start + slope * mean(across), slope, layer, { class: "diffinf-line diffinf-series-1" });
      const dot = (i, marked) => chart.dot(across[i], up[i], layer, marked ? 3 : 0, { class: "diffinf-dot diffinf-series-" + (marked ? 1 : 0) });
      for (const marked of [false, true]) there.forEach((which, i) => { if (data.marked.includes(which) === marked) dot(i, marked); }); // those that stand out on top
      const items = across.map((value, i) => ({ x: chart.x(value), y: chart.y(up[i]), text: `${data.labels[there[i]]}: ${text(value, data.xForm)}, ${text(up[i], data.yForm)}` })).sort((a, b) => a.x - b.x);
      point.show(items, "");
      drag(state);
      return `Rank correlation (Spearman) ${text(spearman(across, up), ".3f")}` + (data.slope ? `, slope ${text(slope, ".3g")}` : "") + ` over ${across.length} points.`;
    };
  };

  // Draws the handle of a view that has one.
  function dragged(chart, data, figure) {
    if (!data.handle) return () => {};
    const control = figure.control(data.handle.control), x = unpack(data.handle.x), y = unpack(data.handle.y);
    const move = handle(chart, control, figure, data.handle.series);
    return (state) => {
      const across = at(x, state), up = at(y, state);
      move(control.options.map((_, index) => [across[index], up[index]]), state);
    };
  }

  VIEWS.lines = function (data, host, figure) {
    const series = data.series.map((one) => Object.fromEntries(["x", "y", "low", "high"].map((key) => [key, one[key] && unpack(one[key])])));
    const names = data.series.map((one) => one.name), dense = series.some((one) => one.y.shape[one.y.by.length] > 24);
    const chart = new Chart(host, data.alternative), point = cursor(chart.zone, chart.detail, (item) => chart.mark(item));
    const drag = dragged(chart, data, figure), costs = data.costs.map((cost) => cost.values.map(unpack));
    legend(chart, names, dense ? "dashes" : "markers");
    chart.zone.setAttribute("aria-label", data.alternative + "; arrow keys go through the points");
    const table = data.reading && (names.length > 1 || costs.length > 0) && make("table", { class: "diffinf-readings" }), wide = make("div", { class: "diffinf-wide" });
    if (table) { wide.append(table); host.append(wide); }
    const every = (keys) => extent(series.flatMap((one) => keys.map((key) => one[key]).filter(Boolean).map((array) => array.values))
      .concat(keys.includes("y") ? [data.references.map((one) => one.value)] : []));
    const limits = { x: data.xLimits || every(["x"]), y: data.yLimits || every(["y", "low", "high"]) };
    return function (state) {
      const layer = chart.frame(data, limits.x, limits.y), items = [];
      for (const one of data.references) {
        shape("line", { class: "diffinf-reference", x1: chart.box.left, x2: chart.box.right, y1: chart.y(one.value), y2: chart.y(one.value) }, layer);
        shape("text", { class: "diffinf-reference-label", x: chart.box.right, y: chart.y(one.value) - 5, "text-anchor": "end", text: one.name }, layer);
      }
      series.forEach((one, s) => {
        const x = at(one.x, state), y = at(one.y, state), points = Array.from(y, (value, i) => [x[i], value]), colour = "diffinf-series-" + (s % 6);
        const low = one.low && at(one.low, state), high = one.high && at(one.high, state);
        if (low) chart.path(points.map(([across], i) => [across, low[i]]).concat(points.map(([across], i) => [across, high[i]]).reverse()), layer, { class: "diffinf-band " + colour, fill: null });
        chart.path(points, layer, { class: "diffinf-line " + colour, "stroke-dasharray": dense ? DASHES[s % 6] : null });
        points.forEach(([across, up], i) => {
          if (!Number.isFinite(up)) return;
          if (!dense) chart.dot(across, up, layer, s);
          items.push({ x: chart.x(across), y: chart.y(up), text: `${[names[s], ...data.labels.map((label) => label.values[s][i])].join(", ")}, ${text(across, data.xForm)}: ${text(up, data.yForm)}` + (low ? ` [${text(low[i], data.yForm)}, ${text(high[i], data.yForm)}]` : "") });
        });
      });
      point.show(items, "");
      drag(state);
      return data.reading ? readOff(state, layer) : "";
    };

    function readOff(state, layer) {
      const where = data.reading.values[state[data.reading.control]];
      shape("line", { class: "diffinf-rule", x1: chart.x(where), x2: chart.x(where), y1: chart.box.top, y2: chart.box.bottom }, layer);
      const found = series.map((one, s) => Object.assign({ name: names[s] }, reading(at(one.x, state), at(one.y, state), where, data.reading.rule, data.logX)));
      const known = found.filter((one) => Number.isFinite(one.y)), best = known.reduce((most, one) => (most === null || one.y > most.y ? one : most), null);
      const rows = found.map((one, s) => {
        const low = series[s].low && at(series[s].low, state), high = series[s].high && at(series[s].high, state);
        const inside = low && one.place !== null ? ` [${text(low[one.place], data.yForm)}, ${text(high[one.place], data.yForm)}]` : "";
        if (Number.isFinite(one.y)) shape("circle", { class: "diffinf-read diffinf-series-" + (s % 6), cx: chart.x(one.x), cy: chart.y(one.y), r: 7 }, layer);
        const spent = costs.map((values, c) => (one.place === null ? "–" : text(at(values[s], state)[one.place], data.costs[c].form)));
        const words = data.labels.map((label) => (one.place === null ? "–" : label.values[s][one.place]));
        return make("tr", { class: data.reading.rule === "within" && one === best ? "diffinf-best" : null }, make("th", { scope: "row", text: one.name }), ...words.map((word) => make("td", { class: "diffinf-word", text: word })),
          make("td", { text: text(one.x, data.xForm) }), make("td", { text: text(one.y, data.yForm) + inside }), ...spent.map((written) => make("td", { text: written })));
      });
      const labelled = data.labels.map((label) => make("th", { class: "diffinf-word", scope: "col", text: label.name }));
      const [corner, ...numbers] = ["", data.xLabel, data.yLabel, ...data.costs.map((cost) => cost.name)].map((title) => make("th", { scope: "col", text: title }));
      const head = [corner, ...labelled, ...numbers];
      if (table) table.replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
      const limit = `${data.reading.control} ${figure.control(data.reading.control).options[state[data.reading.control]]}`;
      if (!known.length) return `${limit}: ${data.reading.rule === "within" ? "nothing is to be had for so little" : "no line is there"}.`;
      if (data.reading.rule === "within") {
        const tied = overlapping(state, known, best).join(" and ");
        return `${limit}: best is ${best.name} with ${text(best.y, data.yForm)} at ${text(best.x, data.xForm)}` + (tied ? `; its interval overlaps with ${tied}.` : ".");
      }
      return `${limit}: ` + known.map((one) => `${one.name} ${text(one.y, data.yForm)}`).join(", ") + ".";
    }

    // Lines whose interval, where they are read off, overlaps with that of the best.
    function overlapping(state, known, best) {
      const ends = known.map((one) => {
        const line = series[names.indexOf(one.name)];
        return { one, low: line.low && at(line.low, state)[one.place], high: line.high && at(line.high, state)[one.place] };
      });
      const top = ends.find((end) => end.one === best);
      return ends.filter((end) => end !== top && end.low <= top.high && top.low <= end.high).map((end) => end.one.name);
    }
  };

  // What a line says at a place: `at` it, between its neighbours; or the best `within` it.
  function reading(x, y, where, rule, log) {
    const none = { x: NaN, y: NaN, place: null }, slack = 1e-9 * Math.abs(where);
    if (rule === "within") {
      let best = none;
      for (let i = 0; i < x.length; i++) if (x[i] <= where + slack && Number.isFinite(y[i]) && !(y[i] <= best.y)) best = { x: x[i], y: y[i], place: i };
      return best;
    }
    for (let i = 0; i < x.length; i++) if (Math.abs(x[i] - where) <= slack) return { x: x[i], y: y[i], place: i };
    for (let i = 1; i < x.length; i++) {
      if (!(x[i - 1] < where && where < x[i])) continue;
      const [a, b, c] = log ? [x[i - 1], x[i], where].map(Math.log) : [x[i - 1], x[i], where];
      return { x: where, y: y[i - 1] + (c - a) / (b - a) * (y[i] - y[i - 1]), place: null };
    }
    return none;
  }

  VIEWS.curve = function (data, host, figure) {
    const y = unpack(data.y), slopes = unpack(data.slopes), x = data.x, control = figure.control(data.point);
    const chart = new Chart(host, data.alternative), move = handle(chart, control, figure);
    legend(chart, data.names, "dashes");
    return function (state) {
      const values = at(y, state), here = state[data.point], foot = data.anchor === null ? here : data.anchor;
      const steep = at(slopes, state)[data.anchor === null ? here : 0];
      const layer = chart.frame(data, extent([x]), extent([data.free ? values : y.values]));
      chart.path(x.map((across, i) => [across, values[i]]), layer, { class: "diffinf-line diffinf-series-0" });
      chart.ray(x[foot], values[foot], steep, layer, { class: "diffinf-line diffinf-series-1", "stroke-dasharray": DASHES[1] });
      if (data.anchor !== null) {
        if (here !== foot) chart.ray(x[foot], values[foot], (values[here] - values[foot]) / (x[here] - x[foot]), layer, { class: "diffinf-line diffinf-series-2", "stroke-dasharray": DASHES[2] });
        shape("circle", { class: "diffinf-foot", r: 4.5, cx: chart.x(x[foot]), cy: chart.y(values[foot]) }, layer);
      }
      move(x.map((across, i) => [across, values[i]]), state);
      const place = `${data.point} ${control.options[here]}`;
      if (data.anchor === null) return `${place}: ${data.yLabel} ${text(values[here], data.yForm)}, slope ${text(steep, data.slopeForm)}.`;
      const change = values[here] - values[foot], predicted = steep * (x[here] - x[foot]);
      return `${place}: the curve changes by ${text(change, "+" + data.yForm)}, the tangent says ${text(predicted, "+" + data.yForm)}`
        + (here === foot ? "." : `; slope of the secant ${text(change / (x[here] - x[foot]), data.slopeForm)}, of the tangent ${text(steep, data.slopeForm)}.`);
    };
  };

  VIEWS.matrices = function (data, host) {
    const pair = data.matrices.map(unpack), [rows, columns] = pair[0].shape.slice(pair[0].by.length), panels = [];
    const detail = make("p", { class: "diffinf-detail", "aria-live": "polite" }), grid = make("div", { class: "diffinf-matrices" });
    data.names.forEach((name) => {
      const canvas = make("canvas", { class: "diffinf-heat", width: columns, height: rows, role: "img", "aria-label": `${data.alternative}: ${name}` });
      const mark = make("span", { class: "diffinf-cell", hidden: true, "aria-hidden": "true" });
      const zone = make("div", { class: "diffinf-zone", "aria-label": `${name}; arrow keys go through the cells` }, canvas, mark);
      const words = make("div", { class: "diffinf-written", "aria-hidden": "true" });
      if (data.written) zone.append(words);
      const point = cursor(zone, detail, (item) => panels.forEach((panel) => {
        panel.mark.hidden = !item;
        if (item) panel.mark.style.cssText = `left:${100 * item.column / columns}%;top:${100 * item.row / rows}%;width:${100 / columns}%;height:${100 / rows}%`;
      }));
      panels.push({ canvas, mark, zone, point, words });
      const named = (kind, names) => make("div", { class: kind, "aria-hidden": "true" }, ...names.map((one) => make("span", { text: one })));
      const map = data.named ? make("div", { class: "diffinf-named" }, named("diffinf-column-names", data.columnNames), named("diffinf-row-names", data.rowNames), zone) : zone;
      grid.append(make("div", { class: "diffinf-panel" }, make("p", { class: "diffinf-panel-title", text: name }), map));
    });
    const key = make("p", { class: "diffinf-key" });
    host.append(grid, key, detail);
    const most = data.free ? null : extremes(pair[0].values, pair[1].values, data.ownScale);
    return function (state) {
      const [exact, near] = pair.map((array) => at(array, state)), error = near.map((value, i) => value - exact[i]);
      const shown = [exact, near, error], largest = most || extremes(exact, near, data.ownScale);
      panels.forEach((panel, which) => {
        heat(panel.canvas, shown[which], largest[which]);
        const box = panel.zone.getBoundingClientRect();
        const items = Array.from(exact, (_, i) => ({
          row: Math.floor(i / columns), column: i % columns,
          x: ((i % columns) + 0.5) / columns * box.width, y: (Math.floor(i / columns) + 0.5) / rows * box.height,
          text: `${data.rowNames[Math.floor(i / columns)]}, ${data.columnNames[i % columns]}: ` + data.names.map((name, one) => `${name} ${text(shown[one][i], data.form)}`).join(", ") + (data.notes ? `. ${listed(data.notes, state)[i]}` : ""),
        }));
        items.columns = columns;
        panel.point.show(items, "");
        if (data.written) panel.words.replaceChildren(...Array.from(shown[which], (value, i) => {
          const word = make("span", { text: text(value, data.form) });
          word.style.cssText = `left:${100 * (i % columns + 0.5) / columns}%;top:${100 * (Math.floor(i / columns) + 0.5) / rows}%`;
          return word;
        }));
      });
      const scale = (end, name) => make("span", { class: "diffinf-scale" }, name && make("span", { text: name }), make("span", { text: text(-end, data.form) }), make("span", { class: "diffinf-ramp", "aria-hidden": "true" }), make("span", { text: text(end, data.form) }));
      key.replaceChildren(...data.ownScale ? [scale(largest[0], `${data.names[0]}, ${data.names[1]}:`), scale(largest[2], `${data.names[2]}:`)] : [scale(largest[0], "")]);
      const norm = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
      if (data.errorForm === null) return "";
      return `Relative error ‖${data.names[1]} − ${data.names[0]}‖ / ‖${data.names[0]}‖ = ${text(norm(error) / norm(exact), data.errorForm)}.`;
    };
  };

  // The largest size of a cell in either matrix and in their difference, each of them or one for all; of all states, so that one
  // scale serves them.
  function extremes(exact, near, own) {
    let pair = 0, apart = 0;
    if (exact.length !== near.length) return null; // one of them does not depend on a control of the other
    exact.forEach((value, i) => {
      pair = Math.max(pair, Math.abs(value), Math.abs(near[i]));
      apart = Math.max(apart, Math.abs(near[i] - value));
    });
    return own ? [pair, pair, apart] : Array(3).fill(Math.max(pair, apart));
  }

  // Blue above 0, orange below, clear at 0, so that the page shows through and light and dark need no second picture.
  function heat(canvas, values, largest) {
    const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
    values.forEach((value, i) => {
      const colour = value < 0 ? [228, 118, 40] : [46, 138, 205];
      pixels.data.set([...colour, largest > 0 ? Math.round(255 * Math.abs(value) / largest) : 0], 4 * i);
    });
    context.putImageData(pixels, 0, 0);
  }

  VIEWS.scrubber = function (data, host) {
    if (data.html) {
      const frame = make("div", { class: "diffinf-html" });
      host.append(frame);
      return function (state) {
        frame.innerHTML = listed(data.html, state); // the author's own, escaped in Python where it holds names
        return listed(data.told, state);
      };
    }
    const places = unpack(data.places), sheet = opened(data.sheet), list = make("ul", { class: "diffinf-strip" });
    list.style.setProperty("--_size", data.size + "px");
    const drawn = data.names.map((name) => {
      const canvas = picture(sheet, name);
      list.append(make("li", {}, canvas, ...(name ? [make("span", { text: name })] : [])));
      return canvas;
    });
    host.append(list);
    return function (state) {
      const told = listed(data.told, state);
      at(places, state).forEach((place, i) => drawn[i].show(place, [data.names[i] || data.alternative, told].filter(Boolean).join(", ")));
      return told;
    };
  };

  VIEWS.readouts = function (data, host) {
    const list = make("dl", { class: "diffinf-readouts" });
    const shown = data.values.map((one) => {
      const value = make("dd");
      list.append(make("div", {}, make("dt", { text: one.name }), value));
      return { array: unpack(one.value), value, form: one.form, name: one.name };
    });
    host.append(list);
    return function (state) {
      return shown.map((one) => {
        one.value.textContent = text(at(one.array, state)[0], one.form);
        return `${one.name}: ${one.value.textContent}`;
      }).join("; ") + ".";
    };
  };

  // Seconds or bytes in the largest unit that leaves a number of one or more.
  function inUnits(value, units) {
    const [size, unit] = units.find(([size]) => value >= size) || units[units.length - 1];
    return `${text(value / size, ".3g")} ${unit}`;
  }

  // Seconds and bytes of every stage, as `planner.stage_costs` of Python has them.
  function stageCosts(r, a, limits) {
    const generated = Math.floor(a.queries * r.generated_share + 0.5), training = r.batch * r.gradient;
    const passes = a.measurement_draws + r.further_passes, longest = Math.ceil(a.models / a.devices);
    const weights = 4 * r.parameters, scores = 8 * a.queries * a.train, keeps = a.budget === null || a.train * r.stored_bytes <= a.budget;
    const flops = {
      "model": r.steps * training,
      "samples": (r.sampled_twice ? 2 : 1) * generated * r.sampling_steps * r.forward,
      "retrained": longest * r.retraining_steps * training,
      "measurements": longest * a.queries * passes * r.forward,
      "curvature": a.train * r.curvature + 50 * r.decomposition,
      "train gradients": a.train * (a.gradient_draws * r.gradient + r.rotation),
      "query gradients": a.queries * (a.measurement_draws * r.gradient + r.rotation),
      "scores": 2 * a.queries * a.train * r.entries,
    };
    const disk = {
      "model": weights,
      "samples": 4 * generated * r.pixels * r.kept_states,
      "retrained": a.models * weights,
      "measurements": 8 * r.measurements * a.models * a.queries,
      "curvature": r.curvature_bytes,
      "train gradients": keeps ? a.train * r.stored_bytes : scores,
      "query gradients": a.queries * r.query_bytes,
      "scores": scores,
    };
    const seconds = Object.fromEntries(Object.entries(flops).map(([name, count]) => [name, count / a.rate]));
    const large = [a.queries - generated, generated].map((count) => count * r.query_bytes).filter((size) => size > limits.held);
    const streamed = large.reduce((sum, size) => sum + size, 0), most = streamed ? limits.streamed : limits.shard;
    const parts = Math.ceil(a.train / Math.max(1, Math.floor(most / (4 * r.entries))));
    seconds["scores"] += (parts * streamed + a.queries * r.query_bytes + (keeps ? a.train * r.stored_bytes : 0)) / limits.reading;
    return { time: seconds, disk };
  }

  VIEWS.planner = function (data, host) {
    const svg = shape("svg", { class: "diffinf-chart", role: "img" }), zone = make("div", { class: "diffinf-zone" });
    const table = make("table", { class: "diffinf-readings" });
    zone.append(svg);
    host.append(zone, make("div", { class: "diffinf-wide" }, table));
    const total = (values) => data.stages.reduce((sum, stage) => sum + values[stage.key], 0);
    const most = (values) => data.stages.reduce((best, stage) => (values[stage.key] > values[best.key] ? stage : best));

    function swatch(stage) {
      const key = shape("svg", { class: "diffinf-swatch", width: 12, height: 12, "aria-hidden": "true" });
      shape("rect", { width: 12, height: 12, rx: 2, class: "diffinf-segment diffinf-series-" + stage.series, "fill-opacity": stage.opacity }, key);
      return key;
    }

    // One bar over the whole width; the names of stages stand below where there is room.
    function bar(values, top, width, title) {
      const whole = total(values);
      let left = 0;
      shape("text", { class: "diffinf-axis-label", x: 0, y: top + 12, text: title }, svg);
      for (const stage of data.stages) {
        const wide = values[stage.key] / whole * width, place = { x: left.toFixed(2), y: top + 20, width: wide.toFixed(2), height: 26 };
        shape("rect", Object.assign({ class: "diffinf-segment diffinf-series-" + stage.series, "fill-opacity": stage.opacity, "data-stage": stage.key }, place), svg);
        if (wide > 7 * stage.name.length) shape("text", { x: left + wide / 2, y: top + 62, "text-anchor": "middle", text: stage.name }, svg);
        left += wide;
      }
    }

    return function (state) {
      const asked = { rate: 1e12 * data.rate.values[state[data.rate.control]], budget: data.store.budgets[state[data.store.control]] };
      for (const [field, slider] of Object.entries(data.sliders)) asked[field] = slider.values[state[slider.control]];
      const costs = stageCosts(data.recipes[state[data.experiment]], asked, data.limits);
      const sums = { time: total(costs.time), disk: total(costs.disk) }, width = Math.max(240, zone.clientWidth);
      const written = (value, kind) => inUnits(value, data.units[kind]), whole = { time: written(sums.time, "time"), disk: written(sums.disk, "disk") };
      attributes(svg, { width, height: 154, viewBox: `0 0 ${width} 154` }).replaceChildren();
      bar(costs.time, 0, width, `Time: ${whole.time}`);
      bar(costs.disk, 78, width, `Disk: ${whole.disk}`);
      const kinds = [null, null, "diffinf-share", null, "diffinf-share"];
      const head = ["stage", "time", "share", "disk", "share"].map((name, i) => make("th", { scope: "col", class: kinds[i], text: name }));
      const rows = data.stages.map((stage) => {
        const cells = ["time", "disk"].flatMap((kind) => [written(costs[kind][stage.key], kind), text(costs[kind][stage.key] / sums[kind], ".1%")]);
        return make("tr", { "data-stage": stage.key }, make("th", { scope: "row" }, swatch(stage), stage.name), ...cells.map((cell, i) => make("td", { class: kinds[i + 1], text: cell })));
      });
      table.replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
      const devices = asked.devices === 1 ? "one device" : `${asked.devices} devices`, longest = most(costs.time), largest = most(costs.disk);
      const truth = data.truth.reduce((sum, key) => sum + costs.time[key], 0);
      const told = `${whole.time} on ${devices}, and ${whole.disk} of disk. The ground truth takes ${text(truth / sums.time, ".1%")} of the time. `
        + `Longest: ${longest.name}, ${written(costs.time[longest.key], "time")}. Largest: ${largest.name}, ${written(costs.disk[largest.key], "disk")}.`;
      svg.setAttribute("aria-label", `${data.alternative}. ${told}`);
      return told;
    };
  };

  // --- a figure

  function start(root) {
    if (root[STARTED]) return;
    root[STARTED] = true;
    root.querySelectorAll(":scope > .diffinf-live").forEach((old) => old.remove()); // of a page that was saved while live
    const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const state = {}, live = make("div", { class: "diffinf-live" });
    const status = make("p", { class: "diffinf-status", "aria-live": "polite" }), note = make("p", { class: "diffinf-note", "aria-live": "polite" });
    const figure = { control: (name) => data.controls.find((one) => one.name === name), choose };
    let pressed = null;

    const presets = data.presets.map((preset) => {
      const button = make("button", { type: "button", class: "diffinf-preset", text: preset.name, "aria-pressed": "false" });
      button.addEventListener("click", () => { Object.assign(state, preset.state); pressed = preset; draw(); });
      return { preset, button };
    });
    const controls = data.controls.filter((one) => one.options.length > 1).map((control) => {
      const made = CONTROLS[control.look](control, (index) => choose(control.name, index));
      return { name: control.name, root: made.root, show: made.show };
    });
    data.controls.forEach((control) => { state[control.name] = control.start; });
    if (presets.length) live.append(make("div", { class: "diffinf-presets", role: "group", "aria-label": "Try" }, ...presets.map((one) => one.button)), note);
    if (controls.length) live.append(make("div", { class: "diffinf-controls" }, ...controls.map((one) => one.root)));
    const views = make("div", { class: "diffinf-views" });
    live.append(views, status);
    root.insertBefore(live, root.querySelector(":scope > figcaption"));
    const drawers = data.views.map((view) => {
      const host = make("div", { class: "diffinf-view diffinf-view-" + view.kind });
      views.append(host);
      return VIEWS[view.kind](view, host, figure);
    });

    function choose(name, index) {
      if (state[name] === index) return;
      state[name] = index;
      pressed = null;
      draw();
    }

    function holds(preset) {
      return Object.entries(preset.state).every(([name, index]) => state[name] === index);
    }

    function draw() {
      controls.forEach((control) => control.show(state[control.name]));
      // a preset stays pressed while it holds; where several do, the one that was asked for
      const current = pressed && holds(pressed) ? pressed : (presets.find((one) => holds(one.preset)) || { preset: null }).preset;
      presets.forEach((one) => one.button.setAttribute("aria-pressed", String(one.preset === current)));
      say(note, current ? current.note : "");
      say(status, drawers.map((drawer) => drawer(state)).filter(Boolean).join(" "));
    }

    root.classList.add("diffinf-is-live");
    draw();
    let width = views.clientWidth;
    new ResizeObserver(() => { if (views.clientWidth && views.clientWidth !== width) { width = views.clientWidth; draw(); } }).observe(views);
  }

  function startAll() {
    document.querySelectorAll(".diffinf-interactive").forEach((root) => {
      try { start(root); } catch (error) {
        root.classList.remove("diffinf-is-live"); // what was there before the script stays
        root.querySelectorAll(":scope > .diffinf-live").forEach((part) => part.remove());
        console.error(error);
      }
    });
  }

  startAll();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
})();
