// Small parts that the views share: elements, numbers, thumbnails, virtual lists.
"use strict";

// An element: h("a", { href: "#", class: "x", onclick: f }, child, "text").
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  return fill(element, ...children);
}

// Put children into an element, in place of those that it has; lists are flattened, null is nothing.
function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const format = new Intl.NumberFormat("en");
const whole = (value) => format.format(value);
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const fixed = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;

function announce(text) {
  document.getElementById("announce").textContent = text;
}

// A picture of the instance at a place among all thumbnails, as large as its box (CSS variable --side, in pixels).
function thumbnail(place, side) {
  const { thumbs } = starfc.index;
  if (!thumbs) return null;
  const box = h("span", { class: "thumb", "aria-hidden": "true" });
  box.style.setProperty("--side", `${side}px`);
  const each = thumbs.columns * thumbs.columns;
  const cell = place % each;
  const x = cell % thumbs.columns;
  const y = Math.floor(cell / thumbs.columns);
  box.style.backgroundImage = `url("thumbs/${Math.floor(place / each)}.webp")`;
  box.style.backgroundSize = `${thumbs.columns * side}px auto`;
  box.style.backgroundPosition = `${-x * side}px ${-y * side}px`;
  if (thumbs.tile < 40) box.classList.add("coarse");
  return box;
}

// An instance [row, place, cluster, name] with its picture, as a link to it.
function instanceCard([row, place, cluster, name], side) {
  return h("a", { class: "instance", href: `#/cluster/${cluster}/${row}` },
    thumbnail(place, side),
    h("span", { class: "caption" }, h("span", { class: "row" }, `row ${row}`), name ? h("span", { class: "name", title: name }, name) : null));
}

function meter(label, value, kind = "") {
  const bar = h("span", { class: "meter-bar" });
  bar.style.width = `${Math.min(100, 100 * value)}%`;
  return h("span", { class: `meter ${kind}`, title: `${label} ${fixed(value, 3)}` }, bar);
}

function toggleButton(text, pressed, onclick, key) {
  return h("button", { type: "button", class: "toggle", "aria-pressed": String(pressed), title: key ? `${text} (${key})` : null, onclick }, text);
}

const TALLEST = 8e6; // pixels of an element: browsers allow 17 million and more

// A list of `count` items in a scroller, of which only those in sight are elements. Items are `columns()` to a line of
// `height()` pixels. A list that would be taller than an element may be scrolls by proportionally larger steps.
class VirtualList {
  constructor(scroller, { height, columns = () => 1, render, tag = "ul", label = null }) {
    Object.assign(this, { scroller, height, columns, render, count: 0, first: -1, last: -1 });
    this.body = h(tag, { class: "virtual", "aria-label": label });
    this.draw = this.draw.bind(this);
    scroller.addEventListener("scroll", this.draw, { passive: true });
    this.observer = new ResizeObserver(() => this.refresh());
    this.observer.observe(scroller);
  }

  close() {
    this.scroller.removeEventListener("scroll", this.draw);
    this.observer.disconnect();
  }

  set(count) {
    this.count = count;
    this.refresh();
  }

  refresh() {
    this.first = this.last = -1;
    this.draw();
  }

  // Where the list begins in what the scroller scrolls.
  get top() {
    return this.body.getBoundingClientRect().top - this.scroller.getBoundingClientRect().top + this.scroller.scrollTop;
  }

  // How far the list is scrolled, in pixels of the scroller and of the lines, and what one pixel of the former is.
  scrolled(lines, height) {
    const { scrollTop, clientHeight } = this.scroller;
    const [full, offset] = [lines * height, scrollTop - this.top];
    const ratio = full > TALLEST ? (full - clientHeight) / (TALLEST - clientHeight) : 1;
    return { offset, ratio, y: offset < 0 ? offset : Math.min(offset * ratio, Math.max(offset, full - clientHeight)) };
  }

  draw() {
    const columns = Math.max(1, this.columns());
    const height = this.height();
    const lines = Math.ceil(this.count / columns);
    this.body.style.height = `${Math.min(lines * height, TALLEST)}px`;
    if (!this.scroller.clientHeight) return;
    const { offset, y } = this.scrolled(lines, height);
    const first = columns * Math.max(0, Math.min(lines, Math.floor(y / height) - 3));
    const last = Math.min(this.count, columns * Math.max(0, Math.ceil((y + this.scroller.clientHeight) / height) + 3));
    const shift = offset - y;
    if (first === this.first && last === this.last && columns === this.across && shift === this.shift) return;
    Object.assign(this, { first, last, across: columns, shift });
    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest("[data-at]")?.dataset.at : null;
    const items = [];
    for (let at = first; at < last; at++) {
      const item = this.render(at);
      item.dataset.at = at;
      item.style.transform = `translate(${(100 * (at % columns))}%, ${Math.floor(at / columns) * height + shift}px)`;
      item.style.width = `${100 / columns}%`;
      item.style.height = `${height}px`;
      items.push(item);
    }
    this.body.replaceChildren(...items);
    if (focused) this.body.querySelector(`[data-at="${focused}"] :is(a, button)`)?.focus({ preventScroll: true });
  }

  show(at) {
    const [height, columns] = [this.height(), Math.max(1, this.columns())];
    const { offset, ratio, y } = this.scrolled(Math.ceil(this.count / columns), height);
    const wanted = Math.floor(at / columns) * height;
    const { clientHeight } = this.scroller;
    if (wanted < y || wanted + height > y + clientHeight) this.scroller.scrollTop += (wanted - (clientHeight - height) / 2) / ratio - offset;
    this.draw();
  }
}
