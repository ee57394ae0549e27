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
    headings.forEach((heading, column) => {
      const button = make("button", heading.textContent);
      button.type = "button";
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const each of headings) each.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keyed = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[column]) }));
        keyed.sort((one, other) => compare(one.key, other.key, up ? 1 : -1));
        body.append(...keyed.map((each) => each.row));
      });
      heading.replaceChildren(button);
    });
  }

  for (const table of document.querySelectorAll("#cases table")) makeSortable(table);

  // The slice viewer.

  if (!data.panels.length) return;
  const viewer = element("viewer"), cases = element("case"), targets = element("targets");
  const slider = element("slice"), tiles = element("tiles");
  let panel = null;

  function showSlice() {
    const place = Number(slider.value), [across, down] = panel.grid;
    const x = across > 1 ? (place % across) / (across - 1) : 0;
    const y = down > 1 ? Math.floor(place / across) / (down - 1) : 0;
    for (const image of tiles.querySelectorAll(".sprite i"))
      image.style.backgroundPosition = x * 100 + "% " + y * 100 + "%";
    element("place").textContent = "slice " + (panel.slices[place] + 1) + " of " + panel.depth;
  }

  function showPanel(next) {
    // The same height in the head, so that two targets of a case can be compared.
    const height = panel ? Number(slider.value) / Math.max(panel.slices.length - 1, 1) : null;
    const old = panel;
    panel = next;
    if (!old || old.case !== panel.case) showTargets();
    const last = panel.slices.length - 1;
    slider.max = last;
    slider.value = height === null || (old && old.case !== panel.case)
      ? panel.start : Math.round(height * last);
    tiles.replaceChildren(...panel.tiles.map(makeTile));
    for (const button of targets.children)
      button.setAttribute("aria-pressed", String(button.panel === panel));
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
      place + 1 + " of " + data.panels.length + (data.order ? ", " + data.order : "");
    // Not disabled: a disabled button would lose the focus, and the keys with it.
    element("previous").setAttribute("aria-disabled", String(place === 0));
    element("next").setAttribute("aria-disabled", String(place === data.panels.length - 1));
    for (const row of rows)
      row.setAttribute("aria-current", String(Number(row.dataset.panel) === place));
    showSlice();
  }

  function makeTile(tile) {
    const [width, tall] = panel.size;
    const image = document.createElement("i");
    image.style.backgroundImage = "url(" + data.images[tile.sheet] + ")";
    image.style.backgroundSize = panel.grid[0] * 100 + "% " + panel.grid[1] * 100 + "%";
    image.style.width = Math.min(1, width / tall) * 100 + "%";
    image.style.aspectRatio = width + " / " + tall;
    const sprite = document.createElement("div");
    sprite.className = "sprite";
    sprite.setAttribute("role", "img");
    sprite.setAttribute("aria-label", tile.caption);
    sprite.append(image);
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
    figure.append(sprite, caption);
    return figure;
  }

  function showTargets() {
    cases.value = panel.case;
    const mine = data.panels.filter((each) => each.case === panel.case);
    targets.replaceChildren(...mine.map((each) => {
      const button = make("button", each.source + " \u2192 " + each.target);
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
  slider.addEventListener("input", showSlice);
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
    }
  });
  showPanel(data.panels[0]);
})();
