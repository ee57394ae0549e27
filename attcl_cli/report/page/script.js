(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("tr[data-panel]")];

  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  // The table of cases.

  const words = new Intl.Collator("en", { numeric: true });

  function keyOf(cell) {
    const value = cell.dataset.value;
    if (value === undefined) return cell.textContent;
    return value === "" ? null : Number(value);
  }

  // Numbers come before words, and what has no value comes last, whichever the direction.
  function compare(one, other, direction) {
    if (one === null || other === null) return (one === null) - (other === null);
    if (typeof one !== typeof other) return direction * (typeof one === "number" ? -1 : 1);
    if (typeof one === "string") return direction * words.compare(one, other);
    return direction * ((one > other) - (one < other));
  }

  function makeSortable(table) {
    const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
    let most = body.querySelectorAll("tr:not(.later)").length;  // rows that are shown
    element("all-rows")?.addEventListener("click", () => {
      most = Infinity;
      for (const row of body.rows) row.classList.remove("later");
      document.querySelector("#cases .scroll").focus();
      document.querySelector("#cases .more").remove();
    });
    headings.forEach((heading, column) => {
      const button = make("button", heading.textContent);
      button.type = "button";
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const each of headings) each.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[column]) }));
        keyed.sort((one, other) => compare(one.key, other.key, up ? 1 : -1));
        keyed.forEach(({ row }, place) => row.classList.toggle("later", place >= most));
        body.replaceChildren(...keyed.map((each) => each.row));
      });
      heading.replaceChildren(button);
    });
  }

  for (const table of document.querySelectorAll("#cases table")) makeSortable(table);

  // Paper cannot be unfolded.

  const folded = [...document.querySelectorAll("details:not([open])")];
  const unfold = (open) => () => {
    for (const each of folded) each.open = open;
  };
  window.addEventListener("beforeprint", unfold(true));
  window.addEventListener("afterprint", unfold(false));

  // The slice viewer. A volume has the axes 0 (foot to head), 1 (front to back), 2 (right to left).

  if (!data.panels.length) return;
  const planes = [
    { name: "axial", through: 0, down: 1, across: 2 },
    { name: "coronal", through: 1, down: 0, across: 2 },
    { name: "sagittal", through: 2, down: 0, across: 1 },
  ];
  const MOST_ZOOM = 8;
  const colours = ["#2fe6ff", "#ff6bdc", "#b8f03c", "#ff9f43"];
  const viewer = element("viewer"), cases = element("case"), targets = element("targets");
  const slider = element("slice"), tiles = element("tiles");
  const hidden = new Set();  // names of outlines that are not shown
  let panel = null, plane = planes[0];
  let places = [];  // along each axis
  let view = null;  // zoom, and which point is in the middle: from that of the tile, in tiles
  let sheets = new Map();  // number of a sprite sheet -> its pixels

  // Pictures of segmentations have no synthesised modality.
  const titleOf = (each) => each.target ? each.source + " \u2192 " + each.target : each.source;

  const counts = () => [panel.slices.length, panel.size[1], panel.size[0]];

  // The number of a slice in the volume itself, from 1.
  function numberOf(place) {
    if (plane.through === 0) return panel.slices[place] + 1;
    const [first, end] = panel.box[plane.through - 1];
    return first + Math.floor((place + 0.5) * (end - first) / counts()[plane.through]) + 1;
  }

  // The pixels of the current slice of a sheet; null before it is decoded.
  function sliceOf(sheet) {
    const pixels = sheets.get(sheet);
    if (!pixels) return null;
    const { through, down, across } = plane, [columns] = panel.grid, [width, height] = panel.size;
    const picture = new ImageData(counts()[across], counts()[down]);
    const to = new Uint32Array(picture.data.buffer), at = [];
    at[through] = places[through];
    let next = 0;
    for (let y = 0; y < picture.height; y++) {
      at[down] = down === 0 ? picture.height - 1 - y : y;  // the head is up
      for (let x = 0; x < picture.width; x++) {
        at[across] = x;
        const row = Math.floor(at[0] / columns) * height + at[1];
        to[next++] = pixels[(row * columns + at[0] % columns) * width + at[2]];
      }
    }
    return picture;
  }

  async function decode(sheet) {
    const image = new Image();
    image.src = data.images[sheet];
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data: bytes } = context.getImageData(0, 0, canvas.width, canvas.height);
    return [sheet, new Uint32Array(bytes.buffer)];
  }

  async function load() {
    const wanted = panel;
    const needed = [...panel.tiles, ...panel.outlines].map((each) => each.sheet);
    sheets = new Map([...sheets].filter(([sheet]) => needed.includes(sheet)));
    tiles.setAttribute("aria-busy", "true");
    const missing = [...new Set(needed)].filter((sheet) => !sheets.has(sheet));
    const decoded = await Promise.all(missing.map(decode));
    if (panel !== wanted) return;
    sheets = new Map([...sheets, ...decoded]);
    tiles.setAttribute("aria-busy", "false");
    draw();
  }

  // The border of a region in pixels of the slice, through the middles between inside and outside.
  function borderOf(region) {
    const { width, height, data: bytes } = region, path = new Path2D();
    const inside = (x, y) =>
      x >= 0 && y >= 0 && x < width && y < height && bytes[4 * (y * width + x)] > 127;
    for (let y = -1; y < height; y++) {
      for (let x = -1; x < width; x++) {
        const first = inside(x, y), second = inside(x + 1, y);
        const third = inside(x + 1, y + 1), fourth = inside(x, y + 1);
        if (first === second && second === third && third === fourth) continue;
        const corners = [first, second, third, fourth];
        const middles = [[x + 1, y + 0.5], [x + 1.5, y + 1], [x + 1, y + 1.5], [x + 0.5, y + 1]];
        const crossed = middles.filter((_, side) => corners[side] !== corners[(side + 1) % 4]);
        crossed.forEach((point, place) => path[place % 2 ? "lineTo" : "moveTo"](...point));
      }
    }
    return path;
  }

  function draw() {
    const { across, down } = plane, { spacing } = panel;
    const [width, height] = [across, down].map((axis) => counts()[axis] * spacing[axis]);
    const borders = panel.outlines.filter((outline) => !hidden.has(outline.name))
      .map(({ sheet, colour }) => ({ region: sliceOf(sheet), colour: colours[colour] }))
      .filter(({ region }) => region)
      .map(({ region, colour }) => ({ border: borderOf(region), colour }));
    for (const canvas of tiles.querySelectorAll("canvas")) {
      const sharp = window.devicePixelRatio || 1;
      canvas.width = Math.round(canvas.clientWidth * sharp);
      canvas.height = Math.round(canvas.clientHeight * sharp);
      const picture = sliceOf(canvas.sheet), context = canvas.getContext("2d");
      if (!picture || !canvas.width) continue;
      const scale = view.zoom * Math.min(canvas.width / width, canvas.height / height);
      const place = new DOMMatrix([
        scale * spacing[across], 0, 0, scale * spacing[down],
        canvas.width * (0.5 - view.x * view.zoom) - width * scale / 2,
        canvas.height * (0.5 - view.y * view.zoom) - height * scale / 2,
      ]);
      const small = document.createElement("canvas");
      small.width = picture.width;
      small.height = picture.height;
      small.getContext("2d").putImageData(picture, 0, 0);
      context.imageSmoothingQuality = "high";
      context.setTransform(place);
      context.drawImage(small, 0, 0);
      context.resetTransform();
      context.lineCap = "round";
      for (const { border, colour } of borders) {
        const path = new Path2D();
        path.addPath(border, place);
        for (const [style, wide] of [["#000a", 3.5], [colour, 1.5]]) {
          context.strokeStyle = style;
          context.lineWidth = wide * sharp;
          context.stroke(path);
        }
      }
    }
  }

  function showSlice() {
    places[plane.through] = Number(slider.value);
    const place = "slice " + numberOf(places[plane.through]) + " of " + panel.shape[plane.through];
    element("place").textContent = place;
    element("printed").textContent =
      [panel.case, titleOf(panel), panel.role, plane.name + " " + place].filter(Boolean).join(", ");
    draw();
  }

  function setPlane(next) {
    plane = next;
    for (const button of element("planes").children)
      button.setAttribute("aria-pressed", String(button.plane === plane));
    slider.max = counts()[plane.through] - 1;
    slider.value = places[plane.through];
    setView(1, 0, 0);
  }

  function setView(zoom, x, y) {
    zoom = Math.min(Math.max(zoom, 1), MOST_ZOOM);
    const room = 0.5 - 0.5 / zoom;
    const inside = (value) => Math.min(Math.max(value, -room), room);
    view = { zoom, x: inside(x), y: inside(y) };
    tiles.classList.toggle("zoomed", zoom > 1);
    element("whole").textContent = Math.round(100 * zoom) + "%";
    element("smaller").setAttribute("aria-disabled", String(zoom === 1));
    element("larger").setAttribute("aria-disabled", String(zoom === MOST_ZOOM));
  }

  // What is at (x, y) of the tile, from its middle, stays there.
  function zoomTo(zoom, x = 0, y = 0) {
    zoom = Math.min(Math.max(zoom, 1), MOST_ZOOM);
    const moved = 1 / view.zoom - 1 / zoom;
    setView(zoom, view.x + x * moved, view.y + y * moved);
    draw();
  }

  function showPanel(next) {
    const old = panel;
    const kept = old && old.case === next.case;
    // The same point in the head, so that two targets of a case can be compared.
    const fractions = kept && counts().map((count, axis) => places[axis] / Math.max(count - 1, 1));
    panel = next;
    places = kept ? counts().map((count, axis) => Math.round(fractions[axis] * (count - 1)))
      : [...panel.starts];
    if (!kept) showTargets();
    tiles.replaceChildren(...panel.tiles.map(makeTile));
    tiles.dataset.count = panel.tiles.length;
    element("about-difference").hidden = !panel.tiles.some((tile) => tile.kind === "difference");
    for (const button of targets.children)
      button.setAttribute("aria-pressed", String(button.panel === panel));
    element("planes").hidden = panel.slices.length < 2;
    element("outlines").replaceChildren(...panel.outlines.map(makeSwitch));
    element("outlines").hidden = !panel.outlines.length;
    element("scores").replaceChildren(...panel.scores.map((score) => {
      const chip = document.createElement("div");
      chip.append(make("span", score.name));
      chip.append(make("b", score.value, score.better === "synthetic" ? "better" : ""));
      if (score.copy !== null)
        chip.append(make("small", "copy " + score.copy, score.better === "copy" ? "better" : ""));
      return chip;
    }));
    const place = data.panels.indexOf(panel);
    element("position").textContent =
      [place + 1 + " of " + data.panels.length, panel.role || data.order].filter(Boolean).join(", ");
    // Not disabled: a disabled button would lose the focus, and the keys with it.
    element("previous").setAttribute("aria-disabled", String(place === 0));
    element("next").setAttribute("aria-disabled", String(place === data.panels.length - 1));
    for (const row of rows)
      row.setAttribute("aria-current", String(Number(row.dataset.panel) === place));
    const before = view;
    setPlane(panel.slices.length < 2 ? planes[0] : plane);
    if (kept) setView(before.zoom, before.x, before.y);
    showSlice();
    load();
  }

  function makeTile(tile) {
    const canvas = document.createElement("canvas");
    canvas.sheet = tile.sheet;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", tile.caption);
    const caption = document.createElement("figcaption");
    caption.append(make("span", tile.caption));
    if (tile.kind === "synthetic") caption.append(make("b", "SYNTHETIC", "badge"));
    if (tile.kind === "difference") {
      const ramp = make("span", "", "ramp");
      ramp.append("0", document.createElement("i"), data.differenceTop);
      caption.append(ramp);
    }
    const figure = document.createElement("figure");
    figure.className = tile.kind;
    figure.append(canvas, caption);
    return figure;
  }

  function makeSwitch(outline) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = !hidden.has(outline.name);
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](outline.name);
      draw();
    });
    const colour = document.createElement("i");
    colour.style.borderColor = colours[outline.colour];
    const label = document.createElement("label");
    label.append(box, colour, outline.name + " outline");
    return label;
  }

  function showTargets() {
    cases.value = panel.case;
    const mine = data.panels.filter((each) => each.case === panel.case);
    targets.hidden = mine.length < 2 && !panel.target;
    targets.replaceChildren(...mine.map((each) => {
      const button = make("button", titleOf(each));
      button.type = "button";
      button.panel = each;
      button.addEventListener("click", () => showPanel(each));
      return button;
    }));
  }

  function showNeighbour(step) {
    const neighbour = data.panels[data.panels.indexOf(panel) + step];
    if (neighbour) showPanel(neighbour);
  }

  for (const name of new Set(data.panels.map((each) => each.case))) {
    const option = make("option", name);
    option.value = name;
    cases.append(option);
  }
  cases.addEventListener("change", () => {
    const mine = data.panels.filter((each) => each.case === cases.value);
    showPanel(mine.find((each) => each.target === panel.target) || mine[0]);
  });
  element("planes").append(...planes.map((each) => {
    const button = make("button", each.name);
    button.type = "button";
    button.plane = each;
    button.addEventListener("click", () => {
      setPlane(each);
      showSlice();
    });
    return button;
  }));
  slider.addEventListener("input", showSlice);
  element("smaller").addEventListener("click", () => zoomTo(view.zoom / 1.5));
  element("larger").addEventListener("click", () => zoomTo(view.zoom * 1.5));
  element("whole").addEventListener("click", () => zoomTo(1));
  tiles.addEventListener("dblclick", (event) => {
    if (event.target.tagName !== "CANVAS") return;
    const box = event.target.getBoundingClientRect();
    zoomTo(view.zoom * 2, (event.clientX - box.left) / box.width - 0.5,
      (event.clientY - box.top) / box.height - 0.5);
  });
  tiles.addEventListener("pointerdown", (event) => {
    const canvas = event.target;
    if (canvas.tagName !== "CANVAS" || event.button || view.zoom === 1) return;
    canvas.setPointerCapture(event.pointerId);
    let { clientX, clientY } = event;
    canvas.onpointermove = (moved) => {
      const side = canvas.clientWidth * view.zoom;
      setView(view.zoom, view.x - (moved.clientX - clientX) / side,
        view.y - (moved.clientY - clientY) / side);
      draw();
      ({ clientX, clientY } = moved);
    };
    canvas.onlostpointercapture = () => { canvas.onpointermove = null; };
  });
  new ResizeObserver(draw).observe(tiles);
  element("steps").hidden = data.panels.length < 2;
  element("previous").addEventListener("click", () => showNeighbour(-1));
  element("next").addEventListener("click", () => showNeighbour(1));

  for (const row of rows) {
    // The link in the row is what the keyboard reaches; its click comes here too.
    row.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      showPanel(data.panels[Number(row.dataset.panel)]);
      viewer.scrollIntoView();
      viewer.focus({ preventScroll: true });
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const jump = { PageUp: -1, PageDown: 1 }[event.key];
    const zoom = { "+": view.zoom * 1.5, "=": view.zoom * 1.5, "-": view.zoom / 1.5, 0: 1 }[event.key];
    // A focused list moves by itself, and so does what scrolls. Outside the viewer, the page keys
    // scroll the page.
    if (event.target === cases || event.target.closest(".scroll, .across")) return;
    if (jump && viewer.contains(event.target)) {
      event.preventDefault();
      showNeighbour(jump);
    } else if (step && event.target !== slider) {
      event.preventDefault();
      slider.value = Number(slider.value) + step;
      showSlice();
    } else if (zoom) {
      zoomTo(zoom);
    }
  });
  showPanel(data.panels[0]);
})();
