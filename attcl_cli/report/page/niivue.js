(() => {
  "use strict";
  // NiiVue is unpacked, and its volumes are read, when the reader comes near: a page opens without waiting for it.

  const element = (id) => document.getElementById("niivue-" + id);
  const section = document.getElementById("niivue"), box = element("volumes");
  const COLOURS = [[47, 230, 255], [255, 107, 220], [184, 240, 60], [255, 159, 67]];  // as outlines have
  const OPACITY = 0.3, MOST_ZOOM = 8;
  const PLANES = [
    ["three planes", "MULTIPLANAR"], ["axial", "AXIAL"], ["coronal", "CORONAL"],
    ["sagittal", "SAGITTAL"], ["3-D", "RENDER"],
  ];
  const views = [];  // a figure per volume, with its own NiiVue
  const hidden = new Set();  // names of regions that are not shown
  let niivue = null, data = null, panel = null, plane = "MULTIPLANAR";
  let queue = Promise.resolve();

  const say = (text) => { element("message").textContent = text; };
  const make = (tag, text = "", name = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  function hasWebGL2() {
    const context = document.createElement("canvas").getContext("webgl2");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return Boolean(context);
  }

  async function unpack() {
    const packed = Uint8Array.from(atob(element("program").textContent), (each) => each.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.niivue) throw new Error("the browser did not run it");
    return window.niivue;
  }

  async function start() {
    if (!hasWebGL2()) {
      say("NiiVue needs WebGL 2, which this browser does not have or has switched off. The slices above show the same volumes.");
      return;
    }
    say("NiiVue starts ...");
    try {
      niivue = await unpack();
      data = JSON.parse(element("data").textContent);
      addButtons(element("panels"), data.panels.map((each) => [each.case + ", " + each.title, each]), show);
      addButtons(element("planes"), PLANES, setPlane);
      element("controls").hidden = false;
      await show(data.panels[0]);
      element("keys").hidden = false;
      say("");
    } catch (error) {
      box.replaceChildren();
      element("controls").hidden = element("regions").hidden = true;
      say("NiiVue did not start (" + error.message + "). The slices above show the same volumes.");
    }
  }

  function addButtons(group, choices, choose) {
    group.hidden = choices.length < 2;
    for (const [name, value] of choices) {
      const button = make("button", name);
      button.type = "button";
      button.value_ = value;
      button.addEventListener("click", () => choose(value));
      group.append(button);
    }
  }

  function press(group, value) {
    for (const button of group.children)
      button.setAttribute("aria-pressed", String(button.value_ === value));
  }

  // A volume and its regions.

  function makeView() {
    const figure = make("figure"), frame = make("div"), canvas = make("canvas");
    frame.append(canvas);
    figure.append(frame, make("figcaption"));
    box.append(figure);
    return { figure, canvas, volume: null, viewer: null };
  }

  // Without a graphics card, its programs take seconds to compile, and nothing else happens then.
  async function attach({ figure, canvas }) {
    const viewer = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 0.6, 0.1, 0.8], crosshairWidth: 0.6, crosshairWidthUnit: "percent", dragAndDropEnabled: false,
      dragMode: niivue.DRAG_MODE.measurement, isRadiologicalConvention: true, loadingText: "", logLevel: "error",
      measureTextColor: [1, 1, 1, 1],
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER, sagittalNoseLeft: true, showLegend: false,
    });
    // Its own double click would stretch the window of one volume alone.
    viewer.resetBriCon = () => {
      viewer.clearMeasurements();
      viewer.setPan2Dxyzmm([0, 0, 0, 1]);
    };
    viewer.onLocationChange = ({ mm }) => { element("place").textContent = placeOf(mm); };
    await viewer.attachToCanvas(canvas);
    // The page can be scrolled over a volume: the wheel and fingers are its own only once it was chosen.
    for (const kind of ["wheel", "touchstart", "touchmove", "touchend"])
      figure.addEventListener(kind, (event) => {
        if (document.activeElement !== canvas) event.stopPropagation();
      }, { capture: true, passive: true });
    figure.addEventListener("keydown", (event) => onKey(viewer, event), true);
    figure.addEventListener("keyup", (event) => event.stopPropagation(), true);
    COLOURS.forEach(([red, green, blue], place) => viewer.addColormap("region" + place, {
      R: [red, red], G: [green, green], B: [blue, blue], A: [0, 255], I: [0, 255],
    }));
    return viewer;
  }

  const read = (file, options) => niivue.NVImage.loadFromBase64({
    base64: data.files[file], cal_min: 0, colorbarVisible: false, ...options,
  });

  // A figure says that it waits until its volume is drawn: WebGL alone would leave it black.
  function announce(view, volume) {
    const { figure, canvas } = view;
    view.volume = volume;
    figure.hidden = !volume;
    if (!volume) return;
    const synthetic = volume.kind === "synthetic";
    figure.className = volume.kind + " waiting";
    const caption = figure.querySelector("figcaption");
    caption.replaceChildren(make("span", volume.caption));
    if (synthetic) caption.append(make("b", "SYNTHETIC", "badge"));
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label",
      volume.caption + (synthetic ? ", synthetic" : "") + ": whole volume with a crosshair");
  }

  async function fill(view) {
    const { figure, volume } = view;
    const viewer = view.viewer ??= await attach(view);
    for (const old of [...viewer.volumes].reverse()) viewer.removeVolume(old);
    viewer.addVolume(await read(volume.file, {
      name: "volume.nii.gz", colormap: "gray", cal_max: 255,
    }));
    for (const region of panel.regions)
      viewer.addVolume(await read(region.file, {
        name: region.name + ".nii.gz", colormap: "region" + region.colour, cal_max: 1,
        opacity: hidden.has(region.name) ? 0 : OPACITY,
      }));
    viewer.clearMeasurements();
    viewer.setSliceType(niivue.SLICE_TYPE[plane]);
    viewer.scene.crosshairPos = viewer.mm2frac(panel.start);
    viewer.setPan2Dxyzmm([0, 0, 0, 1]);
    viewer.drawScene();
    await onScreen();
    figure.classList.remove("waiting");
  }

  const onScreen = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

  // One after the other: a click while volumes are read waits for them.
  function show(next) {
    queue = queue.then(() => load(next));
    return queue;
  }

  async function load(next) {
    panel = next;
    press(element("panels"), panel);
    press(element("planes"), plane);
    box.setAttribute("aria-busy", "true");
    box.dataset.count = panel.volumes.length;
    element("regions").replaceChildren(...panel.regions.map(makeSwitch));
    element("regions").hidden = !panel.regions.length;
    while (views.length < panel.volumes.length) views.push(makeView());
    for (const [place, view] of views.entries()) announce(view, panel.volumes[place]);
    await onScreen();
    for (const view of shown()) await fill(view);
    const viewers = shown().map((view) => view.viewer);
    for (const viewer of viewers) viewer.broadcastTo(viewers, { "2d": true, "3d": true });
    element("place").textContent = placeOf(panel.start);
    box.setAttribute("aria-busy", "false");
  }

  const shown = () => views.slice(0, panel.volumes.length);

  function makeSwitch(region) {
    const input = document.createElement("input");
    input.type = "checkbox";
    input.checked = !hidden.has(region.name);
    input.addEventListener("change", () => {
      hidden[input.checked ? "delete" : "add"](region.name);
      const place = 1 + panel.regions.indexOf(region);
      for (const { viewer } of shown())
        if (viewer?.volumes[place]) viewer.setOpacity(place, input.checked ? OPACITY : 0);
    });
    const colour = document.createElement("i");
    colour.style.borderColor = "rgb(" + COLOURS[region.colour].join(" ") + ")";
    const label = make("label");
    label.append(input, colour, region.name);
    return label;
  }

  // Moving.

  function setPlane(next) {
    plane = next;
    press(element("planes"), plane);
    for (const { viewer } of views) viewer?.setSliceType(niivue.SLICE_TYPE[plane]);
  }

  function placeOf(mm) {
    return ["x", "y", "z"].map((name, axis) => name + " " + mm[axis].toFixed(1)).join(", ") + " mm";
  }

  // The patient's right is on the left of the screen.
  const MOVES = {
    ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
    PageUp: [0, 0, 1], PageDown: [0, 0, -1],
  };
  const ZOOMS = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 };

  // Neither NiiVue's own keys nor those of the slices act here: they know other planes.
  function onKey(viewer, event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    event.stopPropagation();
    if (event.key in MOVES) viewer.moveCrosshairInVox(...MOVES[event.key]);
    else if (event.key in ZOOMS) zoom(viewer, ZOOMS[event.key]);
    else return;
    event.preventDefault();
  }

  // Around the crosshair.
  function zoom(viewer, factor) {
    const before = viewer.scene.pan2Dxyzmm[3];
    const after = Math.min(Math.max(before * factor, 1), MOST_ZOOM);
    const mm = viewer.frac2mm(viewer.scene.crosshairPos);
    const pan = [0, 1, 2].map((axis) => after === 1 ? 0
      : viewer.scene.pan2Dxyzmm[axis] - (after - before) * mm[axis]);
    viewer.setPan2Dxyzmm([...pan, after]);
  }

  const watcher = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    start();
  }, { rootMargin: "300px" });
  watcher.observe(section);
})();
