// SPDX-License-Identifier: GPL-2.0-or-later
// The map of physical memory: runs of frames in a grid of cells, one frame a cell or more, moved by pointer and keys.
"use strict";

const CELL = 7;
const LARGEST_CELL = 56;

async function unpacked(data) {
  const packed = Uint8Array.from(atob(data.text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const start = new Float64Array(data.runs + 1);
  let at = data.runs, frame = 0;
  for (let run = 0; run < data.runs; run++) {
    start[run] = frame;
    let scale = 1, byte;
    do {
      byte = bytes[at++];
      frame += (byte & 127) * scale;
      scale *= 128;
    } while (byte & 128);
  }
  start[data.runs] = frame;
  return { start, which: bytes.subarray(0, data.runs) };
}

const hex = (number) => "0x" + number.toString(16);

function size(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit++; }
  return (Number.isInteger(bytes) ? bytes : bytes.toFixed(1)) + " " + units[unit];
}

class MemoryMap {
  constructor(element, data, runs) {
    Object.assign(this, { element, data, ...runs });
    this.end = data.frames;
    this.layer = 0;
    this.cursor = 0;
    this.first = 0;
    this.canvas = element.querySelector(".frames");
    this.whole = element.querySelector(".whole");
    this.told = element.querySelector(".told");
    this.keys = element.querySelector(".keys");
    this.zoom = null;
    this.base = CELL;
    this.listen();
    this.resize();
    this.goTo(this.firstAlarm());
    this.fillKeys();
  }

  listen() {
    const { canvas, element } = this;
    for (const choice of element.querySelectorAll("input[type=radio]"))
      choice.addEventListener("change", () => { this.layer = Number(choice.value); this.fillKeys(); this.draw(); });
    const actions = { in: () => this.setZoom(this.zoom - 1), out: () => this.setZoom(this.zoom + 1), all: () => this.showAll() };
    for (const button of element.querySelectorAll("button[data-do]"))
      button.addEventListener("click", actions[button.dataset.do]);
    element.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = event.target.elements.frame.value.trim();
      const number = /^(0x[0-9a-f]+|[0-9]+)$/i.test(text) ? Number(text) : NaN;
      if (number >= 0 && number < this.end) this.goTo(number);
      else this.told.textContent = `No such frame: expected a number from 0 to ${hex(this.end - 1)}.`;
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return;
      event.preventDefault();
      this.setZoom(this.zoom + Math.sign(event.deltaY), this.frameAt(event));
    }, { passive: false });
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = { y: event.offsetY, first: this.first, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (from && Math.abs(event.offsetY - from.y) > this.cell) {
        from.moved = true;
        this.setFirst(from.first - Math.round((event.offsetY - from.y) / this.cell) * this.columns * this.each);
      }
      const frame = this.frameAt(event);
      if (frame !== null) this.tell(frame);
    });
    canvas.addEventListener("pointerup", (event) => {
      const frame = this.frameAt(event);
      if (from && !from.moved && frame !== null) { this.cursor = frame; this.draw(); this.tell(frame); }
      from = null;
    });
    canvas.addEventListener("dblclick", (event) => this.setZoom(this.zoom - 1, this.frameAt(event)));
    canvas.addEventListener("pointerleave", () => this.tell(this.cursor));
    this.whole.addEventListener("click", (event) =>
      this.goTo(Math.min(this.end - 1, Math.floor(event.offsetX / this.whole.clientWidth * this.end))));
    new ResizeObserver(() => this.resize()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  key(event) {
    const row = this.columns, page = this.columns * (this.rows - 1);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row, PageDown: page, PageUp: -page };
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in steps) this.goTo(this.cursor + steps[event.key] * this.each);
    else if (event.key === "Home") this.goTo(0);
    else if (event.key === "End") this.goTo(this.end - 1);
    else if (["+", "=", "Enter"].includes(event.key)) this.setZoom(this.zoom - 1);
    else if (event.key === "-") this.setZoom(this.zoom + 1);
    else if (event.key === "0") this.showAll();
    else return;
    event.preventDefault();
  }

  get each() { return 2 ** Math.max(this.zoom, 0); }
  get cell() { return this.base * 2 ** Math.max(-this.zoom, 0); }
  get columns() { return Math.max(1, Math.floor(this.canvas.clientWidth / this.cell)); }
  get rows() { return Math.max(1, Math.floor(this.canvas.clientHeight / this.cell)); }

  widest() {
    const cells = Math.floor(this.canvas.clientWidth / CELL) * Math.floor(this.canvas.clientHeight / CELL);
    return Math.max(0, Math.ceil(Math.log2(this.end / Math.max(cells, 1))));
  }

  // The side of a cell at which the whole memory fills the canvas, if it is small.
  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas, cells = this.end / 2 ** this.widest();
    this.base = CELL;
    while (this.base < 2 * CELL && Math.floor(width / (this.base + 1)) * Math.floor(height / (this.base + 1)) >= cells)
      this.base++;
  }

  resize() {
    this.fit();
    for (const canvas of [this.canvas, this.whole]) {
      canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
      canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
    }
    if (this.zoom === null || this.zoom > this.widest()) this.showAll();
    else this.setFirst(this.first);
  }

  showAll() { this.zoom = this.widest(); this.setFirst(0); this.tell(this.cursor); }

  setZoom(zoom, around = this.cursor) {
    const least = -Math.log2(LARGEST_CELL / CELL);
    const frame = around === null ? this.cursor : around;
    this.zoom = Math.min(Math.max(zoom, least), this.widest());
    this.cursor = frame - frame % this.each;
    this.setFirst(frame - Math.floor(this.rows / 2) * this.columns * this.each);
    this.tell(this.cursor);
  }

  setFirst(frame) {
    const row = this.columns * this.each;
    const last = Math.max(0, Math.ceil(this.end / row) - this.rows) * row;
    this.first = Math.min(Math.max(0, Math.round(frame / row) * row), last);
    this.draw();
  }

  goTo(frame) {
    this.cursor = Math.min(Math.max(0, frame), this.end - 1);
    this.cursor -= this.cursor % this.each;
    const row = this.columns * this.each, here = this.cursor - this.cursor % row;
    if (here < this.first) this.setFirst(here);
    else if (here >= this.first + row * this.rows) this.setFirst(here - row * (this.rows - 1));
    else this.draw();
    this.tell(this.cursor);
  }

  frameAt(event) {
    const column = Math.floor(event.offsetX / this.cell), row = Math.floor(event.offsetY / this.cell);
    if (column < 0 || column >= this.columns || row < 0 || row >= this.rows) return null;
    const frame = this.first + (row * this.columns + column) * this.each;
    return frame < this.end ? frame : null;
  }

  runAt(frame) {
    let low = 0, high = this.data.runs - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.start[middle] <= frame) low = middle; else high = middle - 1;
    }
    return low;
  }

  code(run, layer = this.layer) { return this.data.classes[this.which[run]][layer]; }

  // The codes of each of `count` cells of `each` frames from `first` on: the one with an alarm, else of most frames.
  cells(first, count, each) {
    const words = this.data.layers[this.layer].words;
    const found = new Uint8Array(count), sums = new Float64Array(words.length);
    let run = this.runAt(first);
    for (let cell = 0; cell < count; cell++) {
      const from = first + cell * each, to = Math.min(from + each, this.end);
      if (from >= this.end) { found[cell] = 255; continue; }
      if (this.start[run + 1] >= to) {
        found[cell] = this.code(run);
        if (this.start[run + 1] === to) run++;
        continue;
      }
      sums.fill(0);
      while (run < this.data.runs && this.start[run] < to) {
        sums[this.code(run)] += Math.min(this.start[run + 1], to) - Math.max(this.start[run], from);
        if (this.start[run + 1] > to) break;
        run++;
      }
      let best = -1;
      for (let code = 0; code < sums.length; code++)
        if (sums[code] && (best < 0 || words[code].alarming > words[best].alarming ||
            (words[code].alarming === words[best].alarming && sums[code] > sums[best]))) best = code;
      found[cell] = best;
    }
    return found;
  }

  colours() {
    const probe = document.createElement("span");
    this.element.append(probe);
    const found = this.data.layers[this.layer].words.map((word) => {
      probe.className = "c-" + word.key;
      return getComputedStyle(probe).getPropertyValue("--c").trim();
    });
    probe.remove();
    return found;
  }

  draw() {
    const colours = this.colours(), style = getComputedStyle(this.element);
    const ink = style.getPropertyValue("--ink"), { cell, columns, rows, each } = this;
    const context = this.canvas.getContext("2d"), gap = cell > 3 ? 1 : 0;
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    this.cells(this.first, columns * rows, each).forEach((code, number) => {
      if (code === 255) return;
      context.fillStyle = colours[code];
      context.fillRect(number % columns * cell, Math.floor(number / columns) * cell, cell - gap, cell - gap);
    });
    const at = Math.floor((this.cursor - this.first) / each);
    if (at >= 0 && at < columns * rows) {
      context.strokeStyle = ink;
      context.lineWidth = 2;
      context.strokeRect(at % columns * cell - 1, Math.floor(at / columns) * cell - 1, cell + 1, cell + 1);
    }
    const strip = this.whole.getContext("2d"), width = this.whole.clientWidth, height = this.whole.clientHeight;
    strip.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    strip.clearRect(0, 0, width, height);
    const bars = Math.min(width, this.end), per = Math.ceil(this.end / bars);
    this.cells(0, Math.ceil(this.end / per), per).forEach((code, bar) => {
      strip.fillStyle = colours[code];
      strip.fillRect(bar * per / this.end * width, 3, per / this.end * width + 0.5, height - 6);
    });
    strip.strokeStyle = ink;
    strip.lineWidth = 2;
    const shown = Math.min(columns * rows * each, this.end - this.first);
    strip.strokeRect(this.first / this.end * width + 1, 1, Math.max(4, shown / this.end * width - 2), height - 2);
  }

  tell(frame) {
    if (this.toldOf === `${frame} ${this.each} ${this.layer}`) return;
    this.toldOf = `${frame} ${this.each} ${this.layer}`;
    const last = Math.min(frame + this.each, this.end) - 1, run = this.runAt(frame), other = this.runAt(last);
    const where = frame === last ? `Frame ${hex(frame)}` : `Frames ${hex(frame)} to ${hex(last)}`;
    const place = `${where} (address ${hex(frame * 4096)}, ${size((last - frame + 1) * 4096)})`;
    if (this.data.each > 1 && this.each < this.data.each) {
      const from = frame - frame % this.data.each, to = Math.min(from + this.data.each, this.end) - 1;
      const words = this.data.layers.map((layer, number) => layer.words[this.code(run, number)].label);
      this.told.textContent = `${place}: this map tells no less than ${this.data.each} frames apart; of frames ${hex(from)} to ${hex(to)} most, or the alarming ones, are: ${words.join("; ")}.`;
      return;
    }
    if (run === other) {
      const from = this.start[run], to = this.start[run + 1] - 1;
      const words = this.data.layers.map((layer, number) => layer.words[this.code(run, number)].meaning);
      const alike = to > from ? ` All of frames ${hex(from)} to ${hex(to)} are alike (${size((to - from + 1) * 4096)}).` : "";
      this.told.textContent = `${place}: ${words.join("; ")}.${alike}`;
      return;
    }
    const sums = new Map();
    for (let at = run; at <= other; at++) {
      const pages = Math.min(this.start[at + 1], last + 1) - Math.max(this.start[at], frame);
      sums.set(this.code(at), (sums.get(this.code(at)) || 0) + pages);
    }
    const words = this.data.layers[this.layer].words;
    const parts = [...sums].sort((one, two) => two[1] - one[1]).map(([code, pages]) => `${pages} ${words[code].label}`);
    this.told.textContent = `${place}, by frames: ${parts.join(", ")}.`;
  }

  fillKeys() {
    const sums = this.data.layers[this.layer].totals.map((pages, code) => [code, pages]).filter((one) => one[1]);
    this.keys.replaceChildren(...sums.map(([code, pages]) => {
      const word = this.data.layers[this.layer].words[code];
      const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("span");
      button.type = "button";
      button.dataset.key = word.key;
      button.dataset.pages = pages;
      button.title = `Go to the next run: ${word.meaning}`;
      swatch.className = `swatch c-${word.key}`;
      button.append(swatch, `${word.label}: ${pages} (${size(pages * 4096)})`);
      button.addEventListener("click", () => this.goToNext(code));
      item.append(button);
      return item;
    }));
  }

  // The first frame with an alarm by any colouring; else frame 0.
  firstAlarm() {
    for (let layer = 0; layer < this.data.layers.length; layer++) {
      const alarming = this.data.layers[layer].words.map((word) => word.alarming);
      for (let run = 0; run < this.data.runs; run++) if (alarming[this.code(run, layer)]) return this.start[run];
    }
    return 0;
  }

  goToNext(code) {
    const here = this.runAt(Math.min(this.cursor + this.each - 1, this.end - 1));
    for (let step = 1; step <= this.data.runs; step++) {
      const run = (here + step) % this.data.runs;
      if (this.code(run) === code) { this.goTo(this.start[run]); return; }
    }
  }
}

const maps = [];
for (const element of document.querySelectorAll(".memory-map")) {
  const data = JSON.parse(document.getElementById(element.dataset.runs).textContent);
  unpacked(data).then((runs) => {
    maps.push(new MemoryMap(element, data, runs));
    element.dataset.ready = "yes";
  });
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
  document.documentElement.classList.add("printed");
  for (const map of maps) map.draw();
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
  document.documentElement.classList.remove("printed");
  for (const map of maps) map.draw();
});
