/* Small things for building the page. */

export const byId = (id) => document.getElementById(id);

/** An element with properties (`class`, `text`, `on…` and attributes) and children. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const seconds = (value) => `${value.toFixed(value < 100 ? 1 : 0)} s`;
export const milliseconds = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));

/** Where in a JavaScript string its character (code point) number `chars` begins. */
export function position(text, chars) {
  if (!/[\ud800-\udbff]/.test(text)) return Math.min(chars, text.length);
  let at = 0;
  for (let i = 0; i < chars && at < text.length; i++) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}

/** A canvas as sharp as the screen: its context, in CSS pixels, wiped. */
export function drawing(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

const probe = document.documentElement.appendChild(el("span", { class: "hidden", "aria-hidden": "true" }));
const colours = { until: 0 };

/** A colour of the stylesheet as a canvas understands it; looked up again every second, as the theme may change. */
export function colour(name) {
  if (performance.now() > colours.until) {
    for (const known of Object.keys(colours)) delete colours[known];
    colours.until = performance.now() + 1000;
  }
  if (!colours[name]) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  return colours[name];
}
