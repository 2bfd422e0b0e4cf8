// The linked viewers of a case: one NiiVue a volume, the volumes in the page as base64 NIfTI.
"use strict";

const PLANES = { axial: 0, coronal: 1, sagittal: 2, three: 3 };
const COLUMN = 1; // NiiVue's multiplanarLayout: planes below each other
const CROSSHAIR = 0.8; // voxels
const figures = [...document.querySelectorAll("#viewer figure")];
const viewers = [];
let plane = PLANES.three;

function colours() {
  // too dark, no error, too bright; the same as in the still picture
  return { R: [64, 0, 255], G: [140, 0, 96], B: [255, 0, 48], A: [255, 255, 255], I: [0, 128, 255] };
}

function uncertaintyColours(figure) {
  // from nothing to its colour, over the synthetic image; the same as in the still picture
  const [red, green, blue] = figure.querySelector("[data-colour]").dataset.colour.split(",").map(Number);
  return { R: [red, red], G: [green, green], B: [blue, blue], A: [0, 255], I: [0, 255] };
}

function loadVolume(key, colormap, low, high) {
  return niivue.NVImage.loadFromBase64({
    base64: document.querySelector(`.volume[data-key="${key}"]`).textContent,
    name: `${key}.nii.gz`,
    colormap,
    cal_min: low,
    cal_max: high,
  });
}

async function makeViewer(figure) {
  const viewer = new niivue.Niivue({
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    showAllOrientationMarkers: true,
    multiplanarLayout: COLUMN,
    multiplanarShowRender: 0,
    multiplanarPadPixels: 4,
    tileMargin: 0,
    crosshairColor: [0.3, 0.8, 1, 0.55],
    crosshairWidth: CROSSHAIR,
    fontColor: [1, 0.5, 0.05, 1],
    fontMinPx: 15,
    backColor: [0, 0, 0, 1],
    loadingText: "",
    dragAndDropEnabled: false,
    logLevel: "error",
  });
  const canvas = figure.querySelector("canvas");
  await viewer.attachToCanvas(canvas);
  const key = figure.dataset.key;
  if (key === "error") viewer.addColormap(key, colours());
  if (key === "uncertainty") {
    viewer.addColormap(key, uncertaintyColours(figure));
    viewer.addVolume(await loadVolume("synthetic", "gray", 0, 1));
  }
  const colormap = ["error", "uncertainty"].includes(key) ? key : "gray";
  viewer.addVolume(await loadVolume(key, colormap, ...windowOf(figure)));
  viewer.shown = viewer.volumes.at(-1); // what the window and the value below it are of
  viewer.setSliceType(plane);
  viewer.figure = figure;
  viewer.onLocationChange = () => tell();
  viewer.onIntensityChange = () => writeWindow(viewer);
  // NiiVue tells the others only from the canvas that has the focus
  canvas.addEventListener("pointerenter", () => canvas.focus({ preventScroll: true }));
  return viewer;
}

function figureDigits(viewer) {
  return viewer.shown.cal_max > 10 ? 0 : 2; // HU, or an intensity in [0, 1]
}

function windowOf(figure) {
  const high = Number(figure.querySelector("[name=high]").value);
  const low = figure.querySelector("[name=low]");
  return [low ? Number(low.value) : -high, high];
}

function applyWindow(viewer) {
  const [low, high] = windowOf(viewer.figure);
  if (!(low < high)) return;
  viewer.shown.cal_min = low;
  viewer.shown.cal_max = high;
  viewer.updateGLVolume();
}

function writeWindow(viewer) {
  const low = viewer.figure.querySelector("[name=low]");
  const { cal_min: from, cal_max: to } = viewer.shown;
  if (low) low.value = Number(from.toPrecision(3));
  viewer.figure.querySelector("[name=high]").value = Number(to.toPrecision(3));
}

function tell() {
  const focused = viewers.find((viewer) => viewer.canvas === document.activeElement) ?? viewers[0];
  const mm = focused.frac2mm(focused.scene.crosshairPos);
  const names = [["R", "L"], ["A", "P"], ["S", "I"]];
  const parts = names.map(([up, down], axis) => `${mm[axis] >= 0 ? up : down} ${Math.abs(mm[axis]).toFixed(1)}`);
  document.getElementById("position").textContent = `${parts.join("  ")} mm`;
  for (const viewer of viewers) {
    const volume = viewer.shown;
    const value = volume.getValue(...volume.mm2vox([mm[0], mm[1], mm[2]]));
    viewer.figure.querySelector(".value").textContent = value.toFixed(figureDigits(viewer));
  }
}

function choosePlane(next) {
  plane = next;
  for (const viewer of viewers) viewer.setSliceType(plane);
  for (const button of document.querySelectorAll("[data-plane]")) {
    button.classList.toggle("on", Number(button.dataset.plane) === plane);
  }
}

function tellConvention() {
  const radiological = viewers[0].opts.isRadiologicalConvention;
  document.getElementById("convention").textContent = radiological
    ? "radiological: patient's right on the left"
    : "neurological: patient's left on the left";
}

function turnConvention() {
  const radiological = !viewers[0].opts.isRadiologicalConvention;
  for (const viewer of viewers) viewer.setRadiologicalConvention(radiological);
  tellConvention();
}

function toggleCrosshair() {
  const button = document.getElementById("crosshair");
  const shown = button.classList.toggle("on");
  for (const viewer of viewers) viewer.setCrosshairWidth(shown ? CROSSHAIR : 0);
}

function centre() {
  for (const viewer of viewers) {
    viewer.scene.crosshairPos = [0.5, 0.5, 0.5];
    viewer.setPan2Dxyzmm([0, 0, 0, 1]);
    viewer.drawScene();
  }
  tell();
}

function reset() {
  for (const figure of figures) for (const input of figure.querySelectorAll("input")) input.value = input.defaultValue;
  viewers.forEach(applyWindow);
  choosePlane(PLANES.three);
  centre();
}

function move(x, y, z) {
  const from = viewers.find((viewer) => viewer.canvas === document.activeElement) ?? viewers[0];
  from.canvas.focus({ preventScroll: true });
  from.moveCrosshairInVox(x, y, z);
  tell();
}

function onKey(event) {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  // in radiological display the patient's left, which is towards lower x, is on the right
  const right = viewers[0].opts.isRadiologicalConvention ? -1 : 1;
  const actions = {
    ArrowLeft: () => move(-right, 0, 0),
    ArrowRight: () => move(right, 0, 0),
    ArrowUp: () => move(0, 1, 0),
    ArrowDown: () => move(0, -1, 0),
    PageUp: () => move(0, 0, 1),
    PageDown: () => move(0, 0, -1),
    1: () => choosePlane(PLANES.three),
    2: () => choosePlane(PLANES.axial),
    3: () => choosePlane(PLANES.coronal),
    4: () => choosePlane(PLANES.sagittal),
    r: turnConvention,
    c: toggleCrosshair,
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // NiiVue has its own meaning for some of these keys
  action();
}

function wire() {
  for (const viewer of viewers) {
    viewer.broadcastTo(viewers.filter((other) => other !== viewer), { "2d": true, "3d": false });
    for (const input of viewer.figure.querySelectorAll("input")) {
      input.addEventListener("input", () => applyWindow(viewer));
    }
  }
  for (const button of document.querySelectorAll("[data-plane]")) {
    button.addEventListener("click", () => choosePlane(Number(button.dataset.plane)));
  }
  document.getElementById("convention").addEventListener("click", turnConvention);
  document.getElementById("crosshair").addEventListener("click", toggleCrosshair);
  document.getElementById("reset").addEventListener("click", reset);
  document.addEventListener("keydown", onKey, { capture: true });
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("this browser has no WebGL2");
  }
  document.getElementById("viewer").hidden = false;
  for (const figure of figures) viewers.push(await makeViewer(figure));
  wire();
  tellConvention();
  centre();
  document.body.classList.add("ready");
}

start().catch((error) => {
  document.getElementById("viewer").hidden = true;
  document.getElementById("no-viewer").textContent = `No viewer (${error.message}); a still picture instead.`;
});
