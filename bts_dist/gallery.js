// The viewer: one slice of one patient on a canvas, what truth and prediction say of it, and where in the volume it lies.
{
  const { patients, colours } = JSON.parse(document.getElementById("slices").textContent);
  const part = (name) => document.querySelector(`#gallery [data-part="${name}"]`);
  const picture = part("picture"), profile = part("profile"), slider = part("slider");
  const DIMMED = 0.85, ERROR_ALPHA = 0.62, DASH = 4, THUMB = 18, FULL = 0.85;

  const counted = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");
  const rgb = (name) => `rgb(${colours[name].join()})`;
  const errors = ({ tp, fp, fn }) => tp + fp + fn;
  const dice = ({ tp, fp, fn }) => tp + fp + fn ? (2 * tp / (2 * tp + fp + fn)).toFixed(3) : "1, both masks empty";

  let patient, at = 0, turn = 0;

  const mask = (runs) => {
    const inside = new Uint8Array(patient.width * patient.height);
    let pixel = 0;
    runs.forEach((length, run) => {
      if (run % 2) inside.fill(1, pixel, pixel + length);
      pixel += length;
    });
    return inside;
  };

  // The border between inside and outside, along the sides of pixels; of a border that two masks share, dashes in turn.
  const outline = (own, other, dash) => {
    const { width, height } = patient, path = new Path2D();
    const differ = (inside, x, y, left, up) => {
      const here = x < width && y < height ? inside[y * width + x] : 0;
      const before = x - left >= 0 && y - up >= 0 ? inside[(y - up) * width + x - left] : 0;
      return here !== before;
    };
    const drawn = (x, y, left, up) =>
      differ(own, x, y, left, up) &&
      !(other && differ(other, x, y, left, up) && Math.floor((x + y) / DASH) % 2 !== dash);
    for (let y = 0; y <= height; y++) {
      for (let x = 0; x <= width; x++) {
        if (y < height && drawn(x, y, 1, 0)) { path.moveTo(x, y); path.lineTo(x, y + 1); }
        if (x < width && drawn(x, y, 0, 1)) { path.moveTo(x, y); path.lineTo(x + 1, y); }
      }
    }
    return path;
  };

  const errorMap = (truth, prediction) => {
    const map = new OffscreenCanvas(patient.width, patient.height), context = map.getContext("2d");
    const pixels = context.createImageData(patient.width, patient.height);
    truth.forEach((inTruth, pixel) => {
      if (!inTruth && !prediction[pixel]) return;
      const name = inTruth ? (prediction[pixel] ? "tp" : "fn") : "fp";
      pixels.data.set([...colours[name], 255 * ERROR_ALPHA], 4 * pixel);
    });
    context.putImageData(pixels, 0, 0);
    return map;
  };

  // A pixel of the slice is a whole number of the screen's pixels, so that all come out equally large and sharp, unless
  // that would leave much of the room empty.
  const fit = () => {
    const room = picture.parentElement.clientWidth * devicePixelRatio / Math.max(patient.width, patient.height);
    const scale = Math.floor(room) > FULL * room ? Math.floor(room) : room;
    picture.width = Math.floor(patient.width * scale);
    picture.height = Math.floor(patient.height * scale);
    picture.style.width = `${picture.width / devicePixelRatio}px`;
    return scale;
  };

  const drawPicture = async () => {
    const slice = patient.slices[at], mine = ++turn;
    if (!slice.decoded) {
      slice.decoded = new Image();
      slice.decoded.src = `data:image/webp;base64,${slice.image}`;
    }
    await slice.decoded.decode();
    if (mine !== turn) return; // The reader has gone on in the meantime.
    const scale = fit(), context = picture.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.globalAlpha = DIMMED;
    context.drawImage(slice.decoded, 0, 0, picture.width, picture.height);
    context.globalAlpha = 1;
    const truth = mask(slice.truth), prediction = mask(slice.prediction);
    if (part("errors").checked) context.drawImage(errorMap(truth, prediction), 0, 0, picture.width, picture.height);
    const shown = { truth: part("truth").checked && truth, prediction: part("prediction").checked && prediction };
    context.scale(scale, scale);
    context.lineCap = "square";
    context.lineWidth = Math.max(1, Math.round(1.5 * devicePixelRatio)) / scale;
    ["truth", "prediction"].forEach((name, dash) => {
      if (!shown[name]) return;
      context.strokeStyle = rgb(name);
      context.stroke(outline(shown[name], shown[dash ? "truth" : "prediction"], dash));
    });
    context.setTransform(1, 0, 0, 1, 0, 0);
    picture.dataset.drawn = `${patient.patient} ${slice.slice}`;
  };

  // Left edge of each slice's column: its middle is where the slider's thumb stands.
  const place = (slice, width) => THUMB / 2 + (width - THUMB) * (slice / Math.max(1, patient.slices.length - 1));

  const drawProfile = () => {
    const width = profile.clientWidth, height = profile.clientHeight, context = profile.getContext("2d");
    profile.width = width * devicePixelRatio;
    profile.height = height * devicePixelRatio;
    context.scale(devicePixelRatio, devicePixelRatio);
    const column = Math.min(THUMB, 0.8 * (width - THUMB) / Math.max(1, patient.slices.length - 1));
    const most = Math.max(1, ...patient.slices.map(errors));
    patient.slices.forEach((slice, number) => {
      const left = place(number, width) - column / 2;
      context.fillStyle = number === at ? "rgb(255 255 255 / 24%)" : "rgb(255 255 255 / 7%)";
      context.fillRect(left, 0, column, height);
      let top = height;
      for (const name of ["tp", "fn", "fp"]) {
        const length = slice[name] ? Math.max(1, height * slice[name] / most) : 0;
        context.fillStyle = rgb(name);
        context.fillRect(left, top - length, column, length);
        top -= length;
      }
    });
  };

  const show = () => {
    const slice = patient.slices[at];
    slider.value = at;
    const where = `Slice ${at + 1} of ${patient.slices.length}`;
    part("where").textContent = where;
    part("slice-dice").textContent = dice(slice);
    for (const name of ["tp", "fp", "fn"]) part(name).textContent = `${counted(slice[name])} px`;
    slider.setAttribute("aria-valuetext", `${where}, Dice ${dice(slice)}`);
    picture.setAttribute("aria-label", `${patient.patient}, ${where.toLowerCase()}, Dice ${dice(slice)}`);
    drawProfile();
    drawPicture();
  };

  const choose = (number) => {
    patient = patients[number];
    const tumour = patient.slices.map(({ tp, fn }) => tp + fn);
    const begin = tumour.some(Boolean) ? tumour : patient.slices.map(errors);
    at = begin.indexOf(Math.max(...begin));
    slider.max = patient.slices.length - 1;
    part("patient").textContent = patient.patient;
    part("patient-dice").textContent = dice(patient.slices.reduce(
      (sum, { tp, fp, fn }) => ({ tp: sum.tp + tp, fp: sum.fp + fp, fn: sum.fn + fn }),
    ));
    show();
  };

  const point = (event) => {
    const { left, width } = profile.getBoundingClientRect(), last = patient.slices.length - 1;
    at = Math.min(last, Math.max(0, Math.round(last * (event.clientX - left - THUMB / 2) / (width - THUMB))));
    show();
  };

  document.getElementById("gallery").hidden = false;
  document.querySelectorAll('#gallery [name="case"]').forEach((radio, number) => {
    radio.addEventListener("change", () => choose(number));
  });
  slider.addEventListener("input", () => { at = slider.valueAsNumber; show(); });
  profile.addEventListener("pointerdown", (event) => { profile.setPointerCapture(event.pointerId); point(event); });
  profile.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  for (const name of ["truth", "prediction", "errors"]) part(name).addEventListener("change", drawPicture);
  new ResizeObserver(() => { drawProfile(); drawPicture(); }).observe(picture.parentElement);
  document.querySelector('#gallery [name="case"]').checked = true;
  choose(0);
}
