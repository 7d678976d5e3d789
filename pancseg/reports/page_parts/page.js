"use strict";

// Theme: the system's, or the reader's choice, which the browser stores if it may.
const theme = document.getElementById("theme");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function storedTheme(value) {
  try {
    if (value) localStorage.setItem("pancseg-theme", value);
    return localStorage.getItem("pancseg-theme");
  } catch { return null; }
}
function currentTheme() {
  return document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
}
function labelTheme() {
  theme.textContent = currentTheme() === "dark" ? "Light theme" : "Dark theme";
}
if (storedTheme()) document.documentElement.dataset.theme = storedTheme();
theme.addEventListener("click", () => {
  const chosen = currentTheme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  storedTheme(chosen);
  labelTheme();
});
dark.addEventListener("change", labelTheme);
labelTheme();

// Tables: a click on a heading sorts, another reverses; empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const sign = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -sign : sign;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(order));
    });
  });
}

// Viewers: a case is unpacked when it is opened.
const COLOURS = { 1: ["#3ddc84", 3], 2: ["#ff5a4f", 1.5] };
const CANVAS = 480; // pixels of the longer side, about

async function greys(address, view) {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  const sheet = document.createElement("canvas");
  sheet.width = picture.width;
  sheet.height = picture.height;
  const pen = sheet.getContext("2d", { willReadFrequently: true });
  pen.drawImage(picture, 0, 0);
  const pixels = pen.getImageData(0, 0, sheet.width, sheet.height).data;
  const [width, height, depth] = view.shape;
  const volume = new Uint8Array(width * height * depth);
  for (let z = 0, to = 0; z < depth; z++) {
    const left = (z % view.columns) * width, top = Math.floor(z / view.columns) * height;
    for (let y = 0; y < height; y++) {
      let from = ((top + y) * sheet.width + left) * 4;
      for (let x = 0; x < width; x++, from += 4) volume[to++] = pixels[from];
    }
  }
  return volume;
}

function planesOf([width, height, depth]) {
  const at = (x, y, z) => (z * height + y) * width + x;
  return {
    axial: { size: [width, height, depth], at, point: (i, j, k) => [i, j, k] },
    coronal: { size: [width, depth, height], at: (i, j, k) => at(i, k, depth - 1 - j), point: (i, j, k) => [i, k, depth - 1 - j] },
    sagittal: { size: [height, depth, width], at: (i, j, k) => at(k, i, depth - 1 - j), point: (i, j, k) => [k, i, depth - 1 - j] },
  };
}

function fullest(plane, kinds) {
  const [width, height, count] = plane.size;
  let best = Math.floor(count / 2), most = 0;
  for (let k = 0; k < count; k++) {
    let area = 0;
    for (let j = 0; j < height; j++) for (let i = 0; i < width; i++) area += kinds[plane.at(i, j, k)] > 0;
    if (area > most) [best, most] = [k, area];
  }
  return best;
}

function outline(pen, plane, kinds, bit, k, scale) {
  const [width, height] = plane.size;
  const inside = (i, j) => i >= 0 && j >= 0 && i < width && j < height && (kinds[plane.at(i, j, k)] & bit) > 0;
  const path = new Path2D();
  const edge = (a, b, c, d) => { path.moveTo(a * scale, b * scale); path.lineTo(c * scale, d * scale); };
  for (let j = 0; j < height; j++) {
    for (let i = 0; i < width; i++) {
      if (!inside(i, j)) continue;
      if (!inside(i - 1, j)) edge(i, j, i, j + 1);
      if (!inside(i + 1, j)) edge(i + 1, j, i + 1, j + 1);
      if (!inside(i, j - 1)) edge(i, j, i + 1, j);
      if (!inside(i, j + 1)) edge(i, j + 1, i + 1, j + 1);
    }
  }
  [pen.strokeStyle, pen.lineWidth] = COLOURS[bit];
  pen.lineCap = "round";
  pen.stroke(path);
}

async function open(viewer) {
  if (viewer.dataset.state) return;
  viewer.dataset.state = "loading";
  const view = JSON.parse(viewer.querySelector("script").textContent);
  const [image, masks] = await Promise.all([greys(view.image, view), greys(view.masks, view)]);
  const kinds = masks.map((level) => Math.round(level / 85));
  const planes = planesOf(view.shape);
  const figures = Object.fromEntries([...viewer.querySelectorAll("figure")].map((figure) => [figure.dataset.plane, figure]));
  const switches = [...viewer.querySelectorAll("input[data-mask]")];
  const slider = (name) => figures[name].querySelector("input");

  function draw(name) {
    const plane = planes[name], canvas = figures[name].querySelector("canvas"), k = Number(slider(name).value);
    const [width, height, count] = plane.size;
    const scale = Math.max(2, Math.round(CANVAS / Math.max(...view.shape)));
    const small = document.createElement("canvas");
    [small.width, small.height] = [width, height];
    const pixels = new ImageData(width, height);
    for (let j = 0, to = 0; j < height; j++) {
      for (let i = 0; i < width; i++, to += 4) {
        pixels.data.fill(image[plane.at(i, j, k)], to, to + 3);
        pixels.data[to + 3] = 255;
      }
    }
    small.getContext("2d").putImageData(pixels, 0, 0);
    [canvas.width, canvas.height] = [width * scale, height * scale];
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    for (const mask of switches) if (mask.checked) outline(pen, plane, kinds, Number(mask.dataset.mask), k, scale);
    figures[name].querySelector("output").textContent = `${k + 1} of ${count}`;
    canvas.dataset.slice = k;
  }

  function move(name, k) {
    slider(name).value = k;
    draw(name);
  }

  // widths as of the planes: a millimetre is as long in each
  const widths = Object.values(planes).map((plane) => `${plane.size[0]}fr`);
  viewer.style.setProperty("--widths", widths.join(" "));
  for (const [name, plane] of Object.entries(planes)) {
    const canvas = figures[name].querySelector("canvas");
    slider(name).max = plane.size[2] - 1;
    slider(name).addEventListener("input", () => draw(name));
    canvas.addEventListener("click", (event) => {
      canvas.focus({ preventScroll: true });
      const place = (at, length, count) => Math.min(count - 1, Math.max(0, Math.floor((at / length) * count)));
      const i = place(event.offsetX, canvas.clientWidth, plane.size[0]);
      const j = place(event.offsetY, canvas.clientHeight, plane.size[1]);
      const [x, y, z] = plane.point(i, j, Number(slider(name).value));
      const to = { axial: z, coronal: y, sagittal: x };
      for (const other of Object.keys(planes)) if (other !== name) move(other, to[other]);
    });
    // scrolls slices once the picture is chosen, else the page
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      move(name, Number(slider(name).value) + Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (!step) return;
      event.preventDefault();
      move(name, Number(slider(name).value) + step);
    });
    move(name, fullest(plane, kinds));
  }
  for (const mask of switches) mask.addEventListener("change", () => Object.keys(planes).forEach(draw));
  viewer.dataset.state = "ready";
}

for (const details of document.querySelectorAll("details.case")) {
  const show = () => { if (details.open) open(details.querySelector(".viewer")); };
  details.addEventListener("toggle", show);
  show();
}
function follow() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
window.addEventListener("hashchange", follow);
follow();
