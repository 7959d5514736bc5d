"use strict";

// Labels that are shown before "Show all", where fewer are above their thresholds.
const FEW = 8;
const element = (id) => document.getElementById(id);
const model = fetch("api/model").then((response) => response.json());
let picture = null; // the file that is shown
let predictions = [];
let showsAll = false;

// Class names are whatever somebody called them: they are only ever set as text.
model.then((about) => {
  const classes = about.classes.length === 1 ? "1 class" : `${about.classes.length} classes`;
  element("about").textContent = `${about.name}, ${classes}, seen at ${about.image_size} × ${about.image_size} pixels`;
  element("labels").classList.toggle("maps", about.maps);
  element("hint").textContent = about.maps
    ? "The mark on a bar is the threshold. Choose a label to see where the model looks for it."
    : "The mark on a bar is the threshold.";
}).catch(() => say("The server does not answer.", true));

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

// The answer to a picture sent to `path`; an Error with the server's own message where it refuses.
async function send(path, file) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body: file, headers: { "Content-Type": file.type } });
  } catch {
    throw new Error("The server does not answer.");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer ? answer.error.message : `The server answers ${response.status}.`);
  }
  return response;
}

async function show(file) {
  picture = file;
  showsAll = false;
  element("result").hidden = true;
  hideMap();
  URL.revokeObjectURL(element("photo").src);
  element("photo").src = URL.createObjectURL(file);
  element("frame").hidden = false;
  element("invitation").hidden = element("again").hidden = true;
  say("Looking …");
  try {
    const { max_bytes } = await model;
    if (file.size > max_bytes) {
      throw new Error(`The picture has more than ${max_bytes.toLocaleString("en")} bytes; make it smaller.`);
    }
    const answer = await (await send("api/predict", file)).json();
    if (file !== picture) return; // another was chosen in the meantime
    predictions = answer.predictions;
    render();
    say("");
  } catch (error) {
    if (file === picture) say(error.message, true);
  }
  element("again").hidden = false;
}

function render() {
  const present = predictions.filter((one) => one.present);
  element("summary").textContent = present.length
    ? present.map((one) => one.label).join(" · ")
    : "No label is above its threshold.";
  const shown = showsAll ? predictions : predictions.slice(0, Math.max(FEW, present.length));
  element("labels").replaceChildren(...shown.map(row));
  element("more").hidden = showsAll || shown.length === predictions.length;
  element("more").textContent = `Show all ${predictions.length}`;
  element("result").hidden = false;
}

function row({ label, score, threshold, present }) {
  const item = element("row").content.firstElementChild.cloneNode(true);
  const name = item.querySelector(".name");
  name.textContent = label;
  name.disabled = !element("labels").classList.contains("maps");
  name.addEventListener("click", () => toggleMap(name));
  item.classList.toggle("present", present);
  item.querySelector(".bar").style.setProperty("--score", score);
  item.querySelector(".bar").style.setProperty("--threshold", threshold);
  item.querySelector(".number").textContent = score.toFixed(2);
  return item;
}

function hideMap() {
  element("map").hidden = true;
  element("frame").classList.remove("mapped");
  for (const name of document.querySelectorAll(".name")) name.setAttribute("aria-pressed", "false");
}

async function toggleMap(name) {
  const file = picture;
  const pressed = name.getAttribute("aria-pressed") === "true";
  hideMap();
  if (pressed) return;
  name.setAttribute("aria-pressed", "true");
  try {
    const response = await send(`api/map?label=${encodeURIComponent(name.textContent)}`, file);
    const content = await response.blob();
    if (file !== picture || name.getAttribute("aria-pressed") !== "true") return;
    URL.revokeObjectURL(element("map").src);
    element("map").src = URL.createObjectURL(content);
    element("map").alt = `Where the model sees ${name.textContent}`;
    element("map").hidden = false;
    element("frame").classList.add("mapped");
    say("");
  } catch (error) {
    hideMap();
    say(error.message, true);
  }
}

element("file").addEventListener("change", () => {
  const [file] = element("file").files;
  if (file) show(file);
  element("file").value = ""; // or the same file could not be chosen again
});
element("more").addEventListener("click", () => {
  showsAll = true;
  render();
  element("labels").children[FEW]?.querySelector(".name").focus();
});
element("photo").addEventListener("load", () => {
  const { naturalWidth, naturalHeight } = element("photo");
  element("frame").style.setProperty("--ratio", naturalWidth / naturalHeight);
});
element("photo").addEventListener("error", () => {
  element("frame").hidden = true; // a format that the server knows and this browser does not
  element("invitation").hidden = false;
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
addEventListener("dragleave", () => element("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) show(file);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) show(file);
});
